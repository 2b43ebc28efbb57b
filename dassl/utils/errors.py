"""One line that says what went wrong."""


def error_line(err: BaseException) -> str:
    """Message of an error, without the quotes of a KeyError and the number of an OSError."""
    if isinstance(err, OSError) and err.strerror:
        text = err.strerror if err.filename is None else f'{err.strerror}: "{err.filename}"'
    elif isinstance(err, KeyError) and type(err).__str__ is KeyError.__str__ and err.args:
        text = str(err.args[0])
        text = text if " " in text else f"KeyError: {text!r}"  # a bare key says nothing
    else:
        text = str(err)
    return text or type(err).__name__
