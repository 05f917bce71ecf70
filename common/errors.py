"""Errors that the user can mend."""


class UserError(ValueError):
    """Something the user can mend. Its message says what was expected, what came, and what to do.

    Commands print it as one line, without a traceback, and exit with status 2.
    """


class Refused(UserError):
    """A folder must not be written into: something else lies there, or another command is working on it.

    Nothing was touched, so nothing is logged beside the folder either.
    """
