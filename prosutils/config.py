class UserError(ValueError):
    """Something the user can mend: the message says what is wrong and what to do. The CLI prints it without a trace."""
