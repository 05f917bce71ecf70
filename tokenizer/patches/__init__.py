"""Tokenizers without a network: a code stands for a patch of the image. `tokenizer/cluster.py` fits them, by EM."""
