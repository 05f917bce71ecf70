"""How good images are: against the ones they should equal, and against the set they should resemble. Imports `common`
alone."""
