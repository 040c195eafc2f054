"""The command `superduper`."""

import sys


def main() -> None:
    """Run the command line.

    Without the extra that brings it, say how to install it and exit with 2.
    """
    try:
        from superduper_server.cli_root import superduper
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        from superduper.errors import MissingExtra

        print(MissingExtra.of("server", "the command line").message, file=sys.stderr)
        sys.exit(2)
    superduper.main(prog_name="superduper")


if __name__ == "__main__":
    main()
