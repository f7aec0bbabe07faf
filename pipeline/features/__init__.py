"""The feature store: what the frozen part of a backbone says of every image, computed once and kept on disk. `key.py` names a
store by what its contents depend on, `store.py` owns its files, `forward.py` computes, `staging.py` copies it to a node's own
disk, `bank.py` gives training the features from wherever they fit: the device, host memory (`memory.py`), or the files
themselves. `key` and `store` load no torch to read, so that a plan on a login node can ask them."""
