"""What is the user's to mend."""


class UserError(ValueError):
    """Something the user can mend. Its message says what was expected, what came, and what to do.

    Commands print it as one line, without a traceback, and exit with status 2.
    """


class Refused(UserError):
    """A folder is not the command's to write into: something else lies there, or another command is at work on it.

    Nothing was touched, so nothing is logged beside the folder either.
    """
