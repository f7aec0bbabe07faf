"""A seeded fuzzer: what labs mistype, what their tables hold, what disks do to files, thrown at the commands by the thousand.

`verdict` says what a failure is; `values` are the hostile values; each other module makes the cases of one kind. Every case
follows from its seed, kind and number alone, so that one that failed is run again by itself. The short form runs in `make test`
(tests/test_fuzz.py), the long one is `make fuzz`.
"""
