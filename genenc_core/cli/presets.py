"""The `presets` command: what `--like` sets for each tool."""

from genenc_core.cli import output
from genenc_core.run import presets


def run(*, as_json: bool) -> None:
    """Print the presets."""
    if as_json:
        output.say_json([_described(name, preset) for name, preset in presets.PRESETS.items()])
        return
    for name, preset in presets.PRESETS.items():
        output.say([f"--like {name}", f"  {preset.computes}", f"  = {' '.join(presets.flags(preset))}"])
        output.say([f"  for {preset.models_are}"] if preset.models_are else [])
        for reason in dict.fromkeys(preset.needs.values()):
            options = " ".join(presets.flag(option) for option, each in preset.needs.items() if each == reason)
            output.say([f"  needs {options}: {reason}"])


def _described(name: str, preset: presets.Preset) -> dict[str, object]:
    return {
        "name": name,
        "computes": preset.computes,
        "options": dict(preset.options),
        "flags": presets.flags(preset),
        "needs": dict(preset.needs),
        "models": preset.models_are or None,
    }
