"""What the runs were made of: the data as last checked, the settings in which they differ, and the versions."""

from collections.abc import Mapping, Sequence

from kfold.report.parts import Part, Section, Table, Text
from kfold.report.reading import RunFound
from kfold.settings import show

MOST_LINES = 200  # of one kind of finding


def check_section(findings: Mapping[str, object] | None, problem: str = "") -> Section:
    """What the last data check found; findings: of data_check.json, None where there was none, or a problem."""
    if problem:
        return Section("Data check", [Text(f"warning: {problem}")])
    if findings is None:
        return Section("Data check", [Text("Not kept yet: python make_folds.py --check looks at tables and images.")])
    parts: list[Part] = [
        Text(f"As of {findings.get('checked_at', 'an unknown time')} (make_folds.py --check looks again).")
    ]
    rows = [
        (kind, str(line))
        for kind in ("error", "warning", "note")
        for line in list(findings.get(f"{kind}s", []))[:MOST_LINES]
    ]
    parts.append(Table(("kind", "finding"), rows, "Findings") if rows else Text("Nothing was found."))
    return Section("Data check", parts)


def settings_section(runs: Sequence[RunFound], defaults: Mapping[str, object]) -> Section:
    """The keys of config.yaml in which trained runs differ from each other or from the defaults. defaults: by key."""
    trained = [run for run in runs if run.settings and not run.stack_of]
    stacks = [run for run in runs if run.stack_of]
    parts: list[Part] = []
    keys = list(dict.fromkeys([*defaults, *(key for run in trained for key in run.settings)]))
    rows = []
    for key in keys:
        default = show(defaults.get(key, ""))
        values = [show(run.settings[key]) if key in run.settings else default for run in trained]
        if set(values) - {default}:
            rows.append((key, default, *values))
    if rows:
        parts.append(Table(("setting", "default", *(run.name for run in trained)), rows, "Only what differs somewhere"))
    for run in stacks:
        said = ", ".join(f"{key}={show(value)}" for key, value in run.settings.items())
        parts.append(Text(f"{run.name}: {said}"))
    return Section("Settings", parts or [Text("All runs have the default settings.")])


def environment_section(runs: Sequence[RunFound]) -> Section:
    """Versions: one column where all runs have the same, else one for each run."""
    known = [run for run in runs if run.environment]
    if not known:
        return Section("Environment", [Text("No run says what it was made with.")])
    alike = all(dict(run.environment) == dict(known[0].environment) for run in known)
    shown = known[:1] if alike else known
    names = list(dict.fromkeys(name for run in shown for name in run.environment))
    rows = [(name, *(str(run.environment.get(name, "-")) for run in shown)) for name in names]
    header = ("", "all runs") if alike else ("", *(run.name for run in shown))
    devices = [f"{run.name}: {device}" for run in runs if (device := device_of(run))]
    parts: list[Part] = [Table(header, rows, "Versions that the runs were made with")]
    if not alike:
        parts.insert(0, Text("warning: the runs were made with different versions; scores may differ by that alone."))
    if devices:
        parts.append(Text(f"Trained on: {'; '.join(devices)}"))
    return Section("Environment", parts)


def device_of(run: RunFound) -> str:
    found = {
        f"{manifest['device']} ({manifest.get('precision', '?')})"
        for manifest in run.manifests.values()
        if "device" in manifest
    }
    return ", ".join(sorted(found))
