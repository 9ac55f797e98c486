"""The verdict in plain words, from a finished run's manifest: the page, the Markdown and the model card say the same."""

from __future__ import annotations

from typing import Any

from hasten.report.numbers import change, interval, metric, seconds, size, times
from hasten.search.result import Choice, Result

SAME_SIZE = 0.05
"""Files that differ by less than this share are called of the same size."""

FEW = 10
"""Samples that some class must have before anything is said of recall by class."""

NOT_JUDGED = "not judged"
UNCHANGED = "unchanged"


def original(result: Result) -> Choice:
    """The baseline: the unchanged model in onnxruntime. It is the first candidate."""
    return result.candidates[0]


def headline(result: Result) -> str:
    """What came out, as short as can be."""
    best = result.best
    ratio = best.speed_up
    if not result.better or ratio is None:
        return "The original is kept: nothing better was shown"
    speed = f"{ratio['estimate']:.2f} times faster" if ratio["low"] > 1 else "Not slower"
    if best.footprint is not None:
        speed = f"{size(best.footprint['flash'])} of flash and {size(best.footprint['ram'])} of RAM as C (time not measured on the target)"
    kept = {"proven": f"{name(result)} kept", "not shown": f"{name(result)} likely kept", NOT_JUDGED: "the results kept"}
    return f"{speed}, {smaller(result)}, {kept.get(accuracy_state(result), accuracy_state(result))}"


def name(result: Result) -> str:
    """The metric's name; without labels it is about agreement with the original."""
    judged = result.manifest["judged"]
    return "accuracy" if judged is None else str(judged["metric"]).replace("_", " ")


def smaller(result: Result) -> str:
    """`3.9 times smaller`, against the original's file."""
    ratio = original(result).size / result.best.size
    if abs(ratio - 1) < SAME_SIZE:
        return "of the same size"
    return f"{ratio:.1f} times smaller" if ratio > 1 else f"{1 / ratio:.1f} times larger"


def accuracy_state(result: Result) -> str:
    """proven, not shown, broken; `unchanged` where the original is kept, `not judged` where there was no data."""
    if not result.better:
        return UNCHANGED
    verdict = result.best.verdict
    return NOT_JUDGED if verdict is None else str(verdict["state"])


def speed(result: Result) -> list[str]:
    """How fast, against the fastest of the baselines and then the others, how sure; first of all, where the machine was restless, that.

    Where the original is returned the reason holds that warning.
    """
    best, before = result.best, original(result)
    if not result.better or best.ratio is None:
        return [f"The original takes {seconds(before.seconds)} for {a_call(before)} in {before.runtime}."]
    (name, ratio, spent), *others = baselines(result)
    against = f"{seconds(best.seconds)} against {seconds(spent)}" if spent is not None else seconds(best.seconds)
    warnings = [f"{capital(line)}." for line in result.warnings]
    lines = [*warnings, f"{times(ratio['estimate'])} {interval(ratio)} as fast as {name}: {against} for {a_call(best)}."]
    lines += [f"Against {name}: {times(ratio['estimate'])} {interval(ratio)}." for name, ratio, _ in others]
    rounds = result.manifest.get("details", {}).get("rounds")
    many = f"{rounds} rounds" if rounds else "rounds"
    lines.append(
        f"In brackets the 95 % interval over {many} of fresh processes, in turn. The original against itself, measured the same way, "
        f"differs by {100 * (best.noise_floor or 0):.1f} %: below that nothing is claimed."
    )
    return lines


def as_c(result: Result) -> list[str]:
    """What the chosen one takes as C code, and its metric then; nothing where no microcontroller was asked for."""
    found, judged = result.best.footprint, result.best.as_c
    if found is None:
        return []
    lines = [
        f"As C: {found['flash']} bytes of flash for constants (the machine code comes on top), {found['ram']} bytes of RAM: "
        f"{found['arena']} for activations and the input, {found['outputs']} for the output."
    ]
    if judged is not None:
        lines.append(f"{capital(name(result))} of the C code, computed bit for bit: {judged['baseline']:.4f} → {judged['value']:.4f}.")
    return lines


def baselines(result: Result) -> list[tuple[str, dict[str, float], float | None]]:
    """Each baseline that the chosen one was set against, in words, with the speed-up and its seconds; the fastest, which counts, first."""
    best, before = result.best, original(result)
    assert best.ratio is not None
    found = [("", best.ratio, before.seconds)]
    found += [(name, ratio, (best.own_seconds or {}).get(name)) for name, ratio in (best.own_ratios or {}).items()]
    found.sort(key=lambda one: one[1]["estimate"])
    return [(baseline_name(result, name), ratio, spent) for name, ratio, spent in found]


def baseline_name(result: Result, name: str) -> str:
    """`the original in onnxruntime`; its threads too where the chosen one has others. `name`: of `own_ratios`, or empty."""
    before, best = original(result), result.best
    if name.startswith(f"{before.recipe} · "):
        return "the original on one thread"
    if name:
        return f"the original in {name}, its own framework"
    threads = before.target["threads"]
    one_thread = best.target["threads"] != threads or any(key.startswith(before.recipe) for key in best.own_ratios or {})
    return f"the original in {before.runtime}{f' on {threads} threads' if one_thread else ''}"


def a_call(choice: Choice) -> str:
    """`a call of 1 sample with 2 threads`."""
    batch, threads = choice.target["batch"], choice.target["threads"]
    return f"a call of {batch} sample{'s' if batch > 1 else ''} with {threads} thread{'s' if threads > 1 else ''}"


def sizes(result: Result) -> str:
    """The two files, and the memory of the two processes where both were measured."""
    best, before = result.best, original(result)
    if not result.better:
        return f"The file has {size(before.size)}."
    line = " ".join([*as_c(result), f"The file has {size(best.size)} instead of {size(before.size)}: {smaller(result)}."])
    if best.peak_memory and before.peak_memory:
        line += f" Its process needs {size(best.peak_memory)} of memory at most, the original's {size(before.peak_memory)}."
    return line


def accuracy(result: Result) -> list[str]:
    """What happened to accuracy: the numbers, then proven, not shown or broken in plain words."""
    best, judged = result.best, result.manifest["judged"]
    if judged is None:
        return ["It was not judged, because there was no data: only techniques that keep the results were tried."]
    if not result.better or best.test is None or best.verdict is None:
        value = original(result).accuracy
        if value is None:
            return ["The original is returned, so nothing changes."]
        return [
            f"{capital(name(result))} stays {metric(value['value'])} on {value['samples']} validation samples: the original is returned."
        ]
    test, verdict = best.test, best.verdict
    of = "" if judged["labels"] else " (there were no labels: the original's own answers count as right)"
    lines = [
        f"{capital(name(result))} went from {metric(test['baseline'])} to {metric(test['value'])} on {test['samples']} test samples{of}: "
        f"a difference of {change(test['difference']['estimate'])} {interval(test['difference'], 4, '+')}."
    ]
    allowed, worst, drop = allowed_drop(result), verdict["worst"], worse(result)
    if verdict["state"] == "proven":
        lines.append(
            f"The budget allows a {drop} of {allowed:g}. It is kept, and the test data proves it: "
            f"with 95 % confidence the {drop} is at most {metric(max(worst, 0))}."
        )
    elif verdict["state"] == "not shown":
        more = f" About {verdict['samples_needed']} more samples would decide." if verdict["samples_needed"] else ""
        lines.append(
            f"The budget allows a {drop} of {allowed:g}. The estimate keeps it, but {test['samples']} samples do not prove it: "
            f"a {drop} of up to {metric(worst)} is plausible.{more}"
        )
    else:
        lines.append(f"The budget allows a {drop} of {allowed:g}, and it is broken: the {drop} is {metric(verdict['drop'])}.")
    return lines + guards(result)


def guards(result: Result) -> list[str]:
    """What happened to the recall of the classes that were guarded; nothing where none was."""
    guarded = (result.best.test or {}).get("guards") or []
    if not guarded:
        return []
    worst = max(guarded, key=lambda g: g["before"] - g["after"])
    many = "one class" if len(guarded) == 1 else f"{len(guarded)} classes"
    return [
        f"Guarded, and kept, is the recall of {many}; the least so in class {worst['label']}: {metric(worst['before'])} → "
        f"{metric(worst['after'])} on {worst['samples']} test samples."
    ]


def allowed_drop(result: Result) -> float:
    """The drop that the budget allows, in the metric's unit."""
    budget, judged = result.manifest["budget"], result.manifest["judged"]
    allowed: float = budget["max_drop"] if judged is None or judged["labels"] else round(1 - budget["min_agreement"], 9)
    return allowed


def worse(result: Result) -> str:
    """The direction in which the metric gets worse."""
    judged = result.manifest["judged"]
    return "drop" if judged is None or judged["higher_is_better"] else "rise"


def place(result: Result) -> str:
    """The machine it was measured on."""
    machine = result.manifest["machine"]
    return f"{machine['cpu']}, {hardware(result)}"


def hardware(result: Result) -> str:
    """Cores, memory and system of the machine."""
    machine = result.manifest["machine"]
    cores = machine["cores"]
    return f"{cores} core{'s' if cores > 1 else ''}, {size(machine['memory'])} of memory, {machine['system']}"


def limits(result: Result) -> list[str]:
    """What the run does not say."""
    manifest, best = result.manifest, result.best
    lines = [
        f"Speed holds on this machine ({manifest['machine']['cpu']}), {a_call(best)}, with the versions below. On another machine, batch or "
        "number of threads the order may be another: run hasten there.",
    ]
    counts = splits(result)
    if manifest["judged"] is None:
        lines.append("There was no data, so nothing is said about accuracy on real samples.")
    else:
        sizes = f" ({', '.join(f'{count} samples {name}' for name, count in counts)})" if counts else ""
        lines.append(
            f"Accuracy holds for data like the data given{sizes}. Choices were made on validate; test judged the choice alone. "
            "Data that is shifted, rarer classes and misuse were not tried unless a section above says so."
        )
    if best.noise_floor:
        lines.append(f"Differences in time below the noise floor of {100 * best.noise_floor:.1f} % say nothing.")
    lines.append("Candidates that lost early were timed once only: their times are good for sorting out, not for quoting.")
    return lines


def splits(result: Result) -> list[tuple[str, int]]:
    """Name and samples of each split, in the order of their use; empty where it is not known."""
    found = result.manifest.get("details", {}).get("splits") or {}
    return [(name, found[name]) for name in ("calibrate", "validate", "test") if name in found]


def versions(manifest: dict[str, Any]) -> str:
    """Packages that the measurement depends on, and Python."""
    return ", ".join([f"Python {manifest['machine']['python']}", *(f"{k} {v}" for k, v in sorted(manifest["versions"].items()))])


def capital(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]
