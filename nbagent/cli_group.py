"""The group of commands: those of other packages are found by entry point and imported only when run.

So that `nbagent --help` stays light, the help line of such a command is read from its source, not from its import.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from nbagent.cli_errors import ending

GROUP = "nbagent.commands"
ORDER = (
    "demo",
    "tasks",
    "train",
    "recipes",
    "export",
    "score",
    "profile",
    "bixbench",
    "sandbox",
    "compare",
    "replay",
    "prompt",
    "report",
    "exec",
    "validate",
)


class Deferred(TyperCommand):
    """A command that is known by name and help line only; nothing of it is imported yet."""

    def __init__(self, point: EntryPoint) -> None:
        super().__init__(name=point.name, short_help=help_line(point.value))
        self._point = point

    def load(self) -> Any:
        """Import the command: a typer app, or a function."""
        loaded = self._point.load()
        if isinstance(loaded, typer.Typer):
            command = get_command(loaded)
        else:
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command(self._point.name)(loaded)
            command = get_command(app)
        command.name = self._point.name
        return command


class Commands(TyperGroup):
    """The commands of `nbagent`, with one way to end for every error."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for point in entry_points(group=GROUP):
            self.commands.setdefault(point.name, Deferred(point))

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order in which a newcomer meets them; others after these, sorted."""
        rank = {name: place for place, name in enumerate(ORDER)}
        return sorted(self.commands, key=lambda name: (rank.get(name, len(ORDER)), name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to run, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Deferred) else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run it; an error that is not a bug ends as one line on stderr and its exit status."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            end = ending(error)
            if end is None:
                raise
            end.say()
            raise typer.Exit(end.status) from error


def help_line(value: str) -> str:
    """The first line of help for an entry point's value `package.module:name`, read from the source; '' if unknown."""
    module, _, name = value.partition(":")
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, *inner[:-1], f"{inner[-1]}.py") if inner else Path(root, "__init__.py")
        if path.is_file():
            return _help_in(ast.parse(path.read_text(encoding="utf-8")), name)
    return ""


def _help_in(tree: ast.Module, name: str) -> str:
    text = ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            text = ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                given = [k.value for k in node.value.keywords if k.arg == "help"]
                if given and isinstance(given[0], ast.Constant):
                    text = str(given[0].value)
    return (text or "").strip().split("\n", 1)[0]
