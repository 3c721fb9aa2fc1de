"""Entry point of `lmm-gpu` and `python -m lmm_gpu`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C during imports ends it with one line and exit code 130, too."""
    try:
        from .cli.app import main as run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing was done\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
