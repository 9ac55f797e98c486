"""The command line: the table of verbs, and what an error becomes. Techniques' verbs come from plan.TECHNIQUES."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from hasten import plan
from hasten.cli import do, judge, look
from hasten.cli.options import print_line
from hasten.cli.simplify import simplify
from hasten.cli.techniques import technique_command
from hasten.errors import BadInput, HastenError, OutOfResources
from hasten.version import __version__

UsageError: Any = typer.BadParameter.__base__
"""click's, wherever this typer keeps it."""

app = typer.Typer(
    name="hasten",
    help="Make a trained neural network faster and smaller on the machine where it runs, within an accuracy budget, and prove both.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 2 bad input, 3 nothing better, 4 unsupported model, 5 out of resources, 6 a claim failed, 7 inconclusive.",
)

DO, LOOK, JUDGE, TECHNIQUES = "Do", "Look", "Judge", "Techniques"
VERBS: tuple[tuple[str, str, Callable[..., None]], ...] = (
    (DO, "optimize", do.optimize),
    (DO, "run", do.run_plan),
    (DO, "convert", do.convert),
    (DO, "simplify", simplify),
    (LOOK, "inspect", look.inspect_model),
    (LOOK, "report", look.report),
    (LOOK, "doctor", look.doctor),
    (JUDGE, "evaluate", judge.evaluate),
    (JUDGE, "benchmark", judge.benchmark),
    (JUDGE, "compare", judge.compare),
    (JUDGE, "verify", judge.verify),
)
for _panel, _verb, _function in VERBS:
    app.command(_verb, rich_help_panel=_panel)(_function)


def _add_techniques(asked: str | None) -> None:
    """Register the techniques' verbs. Only the one that is asked for is imported: `hasten --help` stays quick."""
    for row in plan.TECHNIQUES:
        if row.verb == asked:
            app.command(row.verb, rich_help_panel=TECHNIQUES)(technique_command(row))
        else:
            app.command(row.verb, rich_help_panel=TECHNIQUES, help=row.about)(lambda: None)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False) -> None:
    if version:
        print_line(f"hasten {__version__}")
        raise typer.Exit()


def main(arguments: list[str] | None = None) -> None:
    """The command. What goes wrong becomes one line on standard error and an exit code; a traceback comes with --debug only."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        _add_techniques(next((a for a in arguments if not a.startswith("-")), None))
        code = app(arguments, prog_name="hasten", standalone_mode=False)
        if code == 130:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        raise _end("interrupted; nothing that was finished is lost, the same command goes on", 130) from None
    except UsageError as e:
        verb = e.ctx.command_path if e.ctx else "hasten"
        raise _end(f"{e.format_message().rstrip('.')}; `{verb} --help` lists what there is.", BadInput.exit_code) from None
    except Exception as e:
        if "--debug" in arguments:
            raise
        raise _end(*_explained(e)) from None
    raise SystemExit(code or 0)


def _explained(error: Exception) -> tuple[str, int]:
    """What to print and the exit code."""
    if isinstance(error, HastenError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller sample of the data, or a smaller --batch", OutOfResources.exit_code
    if isinstance(error, OSError):
        return f"{error.strerror or error}; free space or choose another place, and run the same command again", OutOfResources.exit_code
    return f"this is a fault of hasten's, not yours: {type(error).__name__}: {error}. Run it with --debug and report what it prints.", 1


def _end(line: str, code: int) -> SystemExit:
    sys.stderr.write(f"hasten: {' '.join(line.split())}\n")
    return SystemExit(code)
