"""One line that says what went wrong."""


def error_line(fault: BaseException) -> str:
    """What went wrong, without the quotes that a KeyError puts around a message and the number of an OSError."""
    if isinstance(fault, OSError) and fault.strerror:
        text = fault.strerror if fault.filename is None else f'{fault.strerror}: "{fault.filename}"'
    elif isinstance(fault, KeyError) and type(fault).__str__ is KeyError.__str__ and fault.args:
        text = str(fault.args[0])
        text = text if " " in text else f"KeyError: {text!r}"  # a bare key says nothing
    else:
        text = str(fault)
    return text or type(fault).__name__
