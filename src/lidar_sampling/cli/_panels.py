"""Help in groups: a command with many options shows them by topic."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_PANELS = {
    "What to draw": "prompts geneval tags model variant preset reward method methods as without call beside-vanilla",
    "How much": "images samples pictures only seed seeds bank-seed n steps lookahead lookahead-steps "
    "candidates budget",
    "How strong": "scale reward-scale guidance-scale window noise scheduler floor form invalid",
    "Where": "out banks bank folder resume overwrite collect ray workers gpus judge-gpus host port token",
    "Speed": "batch-size device dtype fast profile",
    "Limits": "places each seconds most-images most-steps most-n most-pixels most-megabytes",
    "Output": "dry-run table json quiet help",
}
PANEL_OF = {f"--{name}": panel for panel, names in _PANELS.items() for name in names.split()}
_MANY = 12  # with more options than this, one list is too long


class GroupedCommand(TyperCommand):
    """A command that shows its options in groups when there are many."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options of each group, in the order of the groups."""
        shown = [(parameter, parameter.get_help_record(ctx)) for parameter in self.get_params(ctx)]
        options = [p for p, record in shown if record and p.param_type_name == "option"]
        groups: dict[str, list[Any]] = {"Arguments": []} | {panel: [] for panel in _PANELS} | {"Options": []}
        for parameter, record in shown:
            if record and parameter.param_type_name == "argument":
                groups["Arguments"].append(record)
            elif record:
                name = PANEL_OF.get(parameter.opts[0], "Options") if len(options) > _MANY else "Options"
                groups[name].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
