"""Measures of images: against those they should equal, and against the set they should resemble."""
