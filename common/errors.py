"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Something the user can mend. Its message says what was expected, what came, and what to do.

    Commands print it as one line, without a traceback, and exit with status 2.
    """
