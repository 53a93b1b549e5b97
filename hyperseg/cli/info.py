"""`hyperseg info`."""


def info() -> int:
    """Show what is built here, which backend each operator takes, and why not the others."""
    from hyperseg.info import main

    main()
    return 0
