"""Losses of image–text pairs: how alike two embeddings are, how alike they should be, how much a pair counts, what it costs."""
