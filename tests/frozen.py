"""Loaded last of all by the process that commands are forked from: what it has loaded is theirs too, and never swept again (to
look at an object is to copy its page of memory)."""

import gc

gc.collect()
gc.freeze()
