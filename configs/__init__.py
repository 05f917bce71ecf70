"""Settings only, one folder an experiment. A package so that an installed wheel carries them."""
