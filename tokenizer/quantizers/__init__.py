"""What stands between encoder and decoder: one file a quantizer, all with one output type."""
