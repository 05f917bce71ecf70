"""What is there for speed alone, for every Transformer that keeps keys and values while it draws."""
