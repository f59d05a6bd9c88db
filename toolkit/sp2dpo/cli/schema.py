"""The command that prints the JSON Schema of a YAML file."""

import click

# Names instead of classes: `sp2dpo --help` and this command's help do not load pydantic.
_MODELS = {
    "panel": ("sp2dpo.panel.panel", "PanelConfig"),
    "schedule": ("sp2dpo.betas.schedule", "ScheduleConfig"),
    "arm": ("sp2dpo.betas.arms", "ArmConfig"),
    "rubric": ("sp2dpo.panel.rubric", "RubricConfig"),
    "student": ("sp2dpo.evaluation.models", "StudentFile"),
    "judge": ("sp2dpo.evaluation.models", "JudgeConfig"),
}
"""The kinds of YAML files, and where the model of each is defined."""


@click.command(short_help="Print the JSON Schema of a type of YAML file.")
@click.argument("kind", type=click.Choice(list(_MODELS)))
def schema(kind: str) -> None:
    """Print the JSON Schema of a type of YAML file, for editors that complete and check YAML.

    \b
    sp2dpo schema schedule > schedule.schema.json

    Then begin the YAML file with the line `# yaml-language-server: $schema=schedule.schema.json`.
    """  # noqa: D301 - click needs the backspace character itself
    import json
    from importlib import import_module

    from sp2dpo.settings import json_schema

    module, name = _MODELS[kind]
    model = getattr(import_module(module), name)
    click.echo(json.dumps(json_schema(model), indent=2, ensure_ascii=False))
