"""The pages of docs/ that code writes: one a technique, the command line, the Python names; and tables in hand-written pages. A hook of mkdocs.

`pages()` gives the generated pages; mkdocs.yml names this file, so that `mkdocs build` makes them afresh each time and none can be stale.
In a hand-written page `<!-- made: NAME -->` is replaced by `TABLES[NAME]()`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import statistics
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import make_results  # noqa: E402

import hasten  # noqa: E402
from hasten import cli, plan  # noqa: E402
from hasten.cli.techniques import technique_command  # noqa: E402
from hasten.measure.statistics import smallest_provable_drop  # noqa: E402
from hasten.profiles import PROFILES  # noqa: E402

TECHNIQUES_NAV = "Techniques"
RESULTS = ROOT / "benchmarks" / "results"
ACCURACY = RESULTS / "accuracy.jsonl"


def pages() -> dict[str, str]:
    """Generated pages by their place in docs/."""
    made = {f"techniques/{row.verb}.md": technique_page(row) for row in plan.TECHNIQUES}
    return made | {"techniques/index.md": techniques_page(), "reference/cli.md": cli_page(), "reference/python.md": python_page()}


# --- techniques


def techniques_page() -> str:
    rows = []
    for row in plan.TECHNIQUES:
        wants = ("takes it" if row.optional_data else "yes") if row.observes else "no"
        rows.append(f"| {row.phase.name.lower()} | [{row.verb}]({row.verb}.md) | {row.about} | {row.effect} | {wants} |")
    return TECHNIQUES_PAGE.format(rows="\n".join(rows))


TECHNIQUES_PAGE = """# Techniques

All there is, in the order in which a plan runs them. Each is a step of the recipes that `hasten optimize` tries, and a verb of its own:
model in, model out. What a technique leaves alone it says, with the node and the reason.

| phase | technique | what it does | effect | wants data |
|---|---|---|---|---|
{rows}

**Effect** says what happens to the results. *equivalent*: the same bits in an unoptimised runtime. *rounding*: the same numbers but for
the last digits of float32, checked on each model. *lossy*: other numbers, which the judge must accept.
"""


def technique_page(row: plan.Row) -> str:
    """What it is, when, what it costs, settings, examples: the docstrings of its module and of its settings."""
    settings = row.settings
    text, when, cost = _three(inspect.getdoc(inspect.getmodule(settings)) or "")
    text = text.replace(f" Effect: {row.effect}.", "", 1)
    wants = "Wants data to calibrate on." if row.observes else "Wants no data."
    wants = "Does better with data to calibrate on." if row.optional_data else wants
    parts = [
        f"# {row.verb}",
        "",
        f"{row.about} Effect: **{row.effect}**. Phase: **{row.phase.name.lower()}**. {wants}",
        "",
        _linked(text),
        "",
        "## When",
        "",
        when,
        "",
        "## What it costs",
        "",
        cost,
        "",
        "## Settings",
        "",
        *_settings(settings),
        "",
        "## Example",
        "",
        *_code(_examples(technique_command(row).__doc__ or "")),
        "",
    ]
    return "\n".join(parts)


def _three(doc: str) -> tuple[str, str, str]:
    """(what it is, when, what it costs) of a technique's docstring. Raises ValueError where one is missing."""
    found = re.fullmatch(r"\w+: (.*?)\n\nWhen: (.*?)\nCost: (.*)", doc.strip(), re.DOTALL)
    if not found:
        raise ValueError(f"a technique's docstring is `name: what it is`, then lines `When:` and `Cost:`, got {doc[:60]!r}")
    return typing.cast("tuple[str, str, str]", tuple(_sentence(part) for part in found.groups()))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _settings(settings: type[Any]) -> list[str]:
    fields = dataclasses.fields(settings)
    doc = inspect.getdoc(settings) or ""
    if not fields:
        return [doc]
    rows = [f"| `--{f.name.replace('_', '-')}` | `{f.type}` | `{f.default!r}` |" for f in fields]
    return ["| setting | type | default |", "|---|---|---|", *rows, "", doc]


def _linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _examples(doc: str) -> list[str]:
    """The example lines of a verb's docstring."""
    return re.findall(r"\[bold\](.*?)\[/\]", doc)


def _code(lines: list[str]) -> list[str]:
    return ["```sh", *lines, "```"]


# --- the command line


def cli_page() -> str:
    verbs = [(verb, function) for _, verb, function in cli.VERBS]
    techniques = [(row.verb, technique_command(row)) for row in plan.TECHNIQUES]
    parts = ["# Command line", "", "Each verb prints the same with `--help`. Exit codes: see [judging](../judging.md#exit-codes).", ""]
    for verb, function in verbs + techniques:
        parts += _verb(verb, function)
    return "\n".join(parts)


def _verb(verb: str, function: Callable[..., None]) -> Iterator[str]:
    """One verb: what it does, examples, arguments and options, as typer knows them."""
    doc = inspect.getdoc(function) or ""
    app = typer.Typer(add_completion=False)
    app.command(verb)(function)
    command = typer.main.get_command(app)
    about = doc.split("[bold]")[0].strip()
    yield from (f"## {verb}", "", about, "", *_code(_examples(doc)), "", "| argument or option | default | |", "|---|---|---|")
    for parameter in command.params:
        argument = parameter.param_type_name == "argument"
        name = (parameter.metavar or parameter.name.upper()) if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
        none = parameter.default is None or parameter.default is False
        default = "required" if parameter.required else "" if none else f"`{parameter.default}`"
        if name != "--help":
            yield f"| `{name}` | {default} | {(getattr(parameter, 'help', None) or '').replace('|', '&#124;')} |"
    yield ""


# --- Python


def python_page() -> str:
    parts = ["# Python", "", "Everything public, as `import hasten` gives it. Nothing else is promised to stay.", ""]
    for name in hasten.__all__:
        thing = getattr(hasten, name)
        if isinstance(thing, str):
            parts += [f"## {name}", "", f"The version, such as `{thing!r}`.", ""]
            continue
        parts += [f"## {name}", "", *_signature(f"hasten.{name}", thing), *_paragraphs(inspect.getdoc(thing) or ""), ""]
        if isinstance(thing, type):
            parts += _members(name, thing)
    return "\n".join(parts)


def _signature(name: str, thing: Any) -> list[str]:
    parameters = _parameters(thing)
    line = f"{name}({', '.join(parameters)})"
    lines = [line] if len(line) <= 100 else [f"{name}(", *(f"    {p}," for p in parameters), ")"]
    return ["```python", *lines, "```", ""]


def _parameters(thing: Any) -> list[str]:
    """`name: type = default` of each, as one would write it; a default that is no plain value is `…`."""
    texts, named = [], False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            texts.append("*")
            named = True
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation if isinstance(parameter.annotation, str) else parameter.annotation.__name__}"
        if parameter.default is not parameter.empty:
            plain = parameter.default is None or isinstance(parameter.default, (bool, int, float, str, tuple))
            text += f" = {parameter.default!r}" if plain else " = …"
        texts.append(text)
    return texts


def _members(owner: str, thing: type[Any]) -> list[str]:
    """Public methods and properties that have a docstring."""
    parts = []
    for name, member in vars(thing).items():
        plain = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        doc = inspect.getdoc(plain)
        if name.startswith("_") or not doc or not (inspect.isfunction(plain) or isinstance(plain, property)):
            continue
        called = "" if isinstance(plain, property) else f"({', '.join(p for p in _parameters(plain) if p != 'self')})"
        parts += [f"### `{owner}.{name}{called}`", "", *_paragraphs(doc), ""]
    return parts


def _paragraphs(doc: str) -> list[str]:
    """A docstring as Markdown: lines `name: what` become a list."""
    lines: list[str] = []
    listed = False
    for line in doc.splitlines():
        found = re.match(r"([a-z_]+): (.*)", line)
        if found:
            lines += ([] if listed or not lines or not lines[-1] else [""]) + [f"- `{found[1]}`: {found[2]}"]
        else:
            lines.append(f"  {line}" if listed and line else line)
        listed = bool(found) or (listed and bool(line))
    return lines


# --- tables in hand-written pages


def results_table() -> str:
    reports = make_results.newest(make_results.RESULTS.read_text()) if make_results.RESULTS.exists() else []
    return make_results.table(reports, make_results.WORDS["README.md"]) or "*No comparison is recorded here yet: `make bench` makes one.*"


def accuracy_table() -> str:
    """Agreement with the float model after int8, the median over the recorded seeds; the last line of each model and seed counts."""
    last = {(report["model"], report["seed"]): report for line in ACCURACY.read_text().splitlines() for report in [json.loads(line)]}
    found: dict[str, list[dict[str, Any]]] = {}
    for (model, _), report in last.items():
        found.setdefault(model, []).append(report)
    rows = ["| model | splits | hasten | NNCF | onnxruntime |", "|---|---:|---:|---:|---:|"]
    for model, reports in sorted(found.items()):
        medians = (statistics.median(r[tool]["agreement"] for r in reports) for tool in ("hasten", "nncf", "onnxruntime"))
        rows.append(f"| {model} | {len(reports)} | " + " | ".join(f"{m:.4f}" for m in medians) + " |")
    return "\n".join(rows)


def provable_table() -> str:
    rows = ["| test samples | the smallest drop that they can prove |", "|---:|---:|"]
    return "\n".join(rows + [f"| {n:,} | {smallest_provable_drop(n):.4f} |" for n in (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)])


def profiles_table() -> str:
    rows = ["| `--for` | what for | sets | mind |", "|---|---|---|---|"]
    for profile in PROFILES:
        values = ", ".join(f"{name} {_plain(value)}" for name, value in profile.settings.items())
        rows.append(f"| {profile.name} | {profile.about} | {values} | {profile.note} |")
    return "\n".join(rows)


def _plain(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _lines(name: str) -> list[dict[str, Any]]:
    """The reports of a file of results, none where it is not there."""
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    marks = "|".join("---" if i == 0 else "---:" for i in range(len(head)))
    return "\n".join([f"| {' | '.join(head)} |", f"|{marks}|", *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def steps_table() -> str:
    """A training step beside the same network in torch; the last line of each model counts."""
    last = {report["model"]: report for report in _lines("training_step")}
    keys = ("executor_to_torch", "compiled_to_torch", "compiled_to_torch_compiled")
    rows = [(name, report["threads"], *(f"{report[key]:.2f}" for key in keys)) for name, report in sorted(last.items())]
    return _table(("network", "threads", "graph / torch", "graph compiled / torch", "graph compiled / torch compiled"), rows)


def distillation_table() -> str:
    """Test errors on MNIST; the last line of each training counts."""
    last = {report["training"]: report for report in _lines("distillation")}
    rows = [(name, r["errors"], f"{1 - r['errors'] / r['samples']:.2%}", r["settings"]["epochs"]) for name, r in last.items()]
    return _table(("training", "errors of 10,000", "accuracy", "epochs"), rows)


def qat_table() -> str:
    """Accuracy of the float model, of the calibrated start and after the training; the last line of each width counts."""
    last = {(r["model"], r["weights"], r["activations"]): r for r in _lines("learning") if r["what"] == "qat"}
    rows = [
        (f"{model}, W{w}A{a}", *(f"{r['accuracy'][k]:.4f}" for k in ("float", "calibrated", "trained")), r["training"]["epochs"])
        for (model, w, a), r in sorted(last.items())
    ]
    return _table(("model", "float", "calibrated", "trained", "epochs"), rows)


def binary_table() -> str:
    """Test errors and the bytes of the layers; the last line of each model counts."""
    last = {(r["model"], r["weights"], r["activations"]): r for r in _lines("binary")}
    rows = [
        (
            f"{name}: {w} weights, {a}",
            r["float_errors"],
            r["errors"],
            f"{r['float_layers_bytes'] / r['layers_bytes']:.1f} ×",
            r["settings"]["epochs"],
        )
        for (name, w, a), r in sorted(last.items())
    ]
    return _table(("network", "errors, float", "errors, binary", "layers smaller", "epochs"), rows)


HASTEN = "hasten's choice"


def sparse_table() -> str:
    """Accuracy of the sparse models in float and int8, and the compressed files beside the dense float model's; the last line of each counts."""
    last = {(r["pattern"], r["way"]): r for r in _lines("sparse")}
    last = dict(sorted(last.items(), key=lambda found: ("dense", "90 %", "2:4").index(found[0][0])))
    dense = next((r["float"]["bytes_xz"] for r in last.values() if r["pattern"] == "dense"), 0)
    rows = [
        (
            f"{pattern}, {way}",
            f"{r['float']['zeros']:.1%}",
            *(f"{r[k]['accuracy']:.4f}" for k in ("float", "int8")),
            *(f"{r[k]['bytes_xz'] / dense:.1%}" for k in ("float", "int8")),
            "" if pattern == "dense" else "all" if not r["int8"]["zeros_lost"] else f"all but {r['int8']['zeros_lost']}",
        )
        for (pattern, way), r in last.items()
    ]
    return _table(("weights", "zeros", "float", "int8", "xz of float", "xz of int8", "zeros that int8 keeps"), rows)


def pruning_table() -> str:
    """What is left of the accuracy (agreement where there are no labels) after pruning, plain, repaired and taught; and the measured speed."""
    last: dict[tuple[str, str, float], dict[str, Any]] = {}
    for line in _lines("pruning"):
        key = (line["model"], line["goal"], line["value"])
        last[key] = {**last.get(key, {}), **line}
    rows = []
    for (model, goal, value), r in last.items():
        if "macs" not in r:
            continue

        def quality(key: str, r: dict[str, Any] = r) -> str:
            found = r.get(key, {})
            return next((f"{found[k]:.4f}" for k in ("accuracy", "pearson", "agreement") if k in found), "")

        times = r.get("times", {})
        fast = {k: f" (× {times[k]:.2f})" if k in times else "" for k in ("repaired", "taught", "taught, int8")}
        wanted = {
            "macs": f"{value:g} of the MACs",
            "time": f"× {value:g}",
            "parts": f"{value:g} of the heads, {0.6 * value:.1g} of the rest",
        }[goal]
        rows.append(
            (
                model,
                wanted,
                f"{r['macs']:.2f}",
                quality("original"),
                quality("plain"),
                *(f"{quality(k)}{fast[k]}" for k in ("repaired", "taught", "taught, int8")),
            )
        )
    return _table(("model", "asked for", "MACs", "original", "plain", "repaired", "taught", "and int8"), rows)


def low_rank_table() -> str:
    """Accuracy after factorize alone, without and with data, by the share of MACs that each layer keeps; each line's last run."""
    last = {(r["model"], r["share"]): r for r in _lines("low_rank") if r["what"] == "factorize"}
    rows = [
        (r["model"], *(f"{r[k]:.4g}" for k in ("share", "original")), *(f"{r[k]:.4f}" for k in ("plain", "data"))) for r in last.values()
    ]
    return _table(("model", "MACs kept", "original", "without data", "with data"), rows)


def packed_table() -> str:
    """Bytes of the digits' CNN, pruned and clustered; each line's last run."""
    last = {r["way"]: r for r in _lines("low_rank") if r["what"] == "packed"}
    rows = [(way, *(f"{r[k]:,}" for k in ("raw", "packed", "entropy_coded"))) for way, r in last.items()]
    return _table(("the digits' CNN", "raw", "packed", "entropy-coded"), rows)


def ablation_table() -> str:
    """Every technique alone, every pair, and all: accuracy, speed, and times smaller when packed; each line's last run."""
    lines = _lines("ablation")
    last = {(r["model"], " + ".join(r["chain"]) or "original"): r for r in lines if "chain" in r}
    times = {r["model"]: r["times"] for r in lines if "times" in r}
    rows = []
    for (model, chain), r in sorted(last.items(), key=lambda item: (item[0][0], len(item[1]["chain"]))):
        speed = times.get(model, {}).get(chain)
        smaller = last[model, "original"]["raw"] / r["entropy_coded"]
        rows.append((model, chain, f"{r['accuracy']:.4f}", "" if speed is None else f"{speed:.2f}", f"{smaller:.1f}"))
    return _table(("model", "techniques", "accuracy", "× as fast", "times smaller, packed"), rows)


def exhaustive_table() -> str:
    """The search's choice beside the best of all plans; the last line of each space."""
    last = {(r["model"], r["trained"]): r for r in _lines("exhaustive")}
    rows = [
        (
            model,
            r["plans"],
            f"{r['best']} (× {r['best_speed']:.2f})",
            f"{r['choice']} (× {r['choice_speed']:.2f})",
            f"{r['noise_floor']:.1%}",
            f"{r['search_seconds']:.0f} of {r['seconds']:.0f} s",
        )
        for (model, _), r in last.items()
    ]
    return _table(("model", "plans", "the best of all", "the search's choice", "noise floor", "time"), rows)


def chain_table() -> str:
    """A search that may train beside what the field offers without training; the last line of each model counts."""
    last = {r["model"]: r for r in _lines("peers_trained")}
    rows = [
        (
            r["model"],
            r["chosen"],
            f"{r['rows']['ORT fp32']['value']:.4f} → {r['rows'][HASTEN]['value']:.4f}",
            f"{1 / r['hasten_to_ort_fp32']:.2f}",
            f"{1 / r['hasten_to_fastest_peer']:.2f} ({r['fastest_peer']})",
            f"{r['bytes']['ORT fp32'] / r['bytes'][HASTEN]:.1f}",
        )
        for r in last.values()
    ]
    return _table(("model", "hasten's choice", "accuracy", "× ORT fp32", "× the fastest peer in budget", "times smaller"), rows)


def deep_compression_table() -> str:
    """Each network's points, size and errors with and without trained code books; the one that the benchmark chooses in bold."""
    from benchmarks.deep_compression import NETWORKS, chosen

    rows: list[tuple[Any, ...]] = []
    for name, network in NETWORKS.items():
        found = {(r["level"], r["bits"], r["way"]): r for r in _lines("deep_compression") if r["network"] == name}
        best = chosen(list(found.values()), network)
        if (floats := found.get((0.0, 32, "float"))) is not None:
            said = f"{floats['validate_errors'] / floats['validate_samples']:.2%} · {floats['errors'] / floats['samples']:.2%}"
            rows.append((network.title, "floats, the ONNX file", f"{floats['float_bytes']:,}", "", "", said, ""))
        for level, bits in sorted(
            {(r["level"], r["bits"]) for r in found.values() if r["bits"] < 32}, key=lambda point: (point[0], -point[1])
        ):
            ways = [found.get((level, bits, way)) for way in ("clustered", "tuned")]
            errors = [
                "" if r is None else f"{r['validate_errors'] / r['validate_samples']:.2%} · {r['errors'] / r['samples']:.2%}" for r in ways
            ]
            errors = [f"**{text}**" if r is not None and r is best else text for r, text in zip(ways, errors, strict=True)]
            size = next(r for r in (best if best in ways else None, *reversed(ways)) if r is not None)
            ratios = (f"{size['float_bytes'] / size['packed_bytes']:.1f} ×", f"{4 * size['parameters'] / size['packed_bytes']:.1f} ×")
            cells = (f"{100 * level:g} % zeros, {bits} bits", f"{size['packed_bytes']:,}", *ratios)
            rows.append((network.title, *(f"**{x}**" if best in ways else x for x in cells), *errors))
        rows.append((network.title, "*Deep Compression*", "", "", f"*{network.paper_ratio} ×*", "", f"*{network.paper_error:.2%}*"))
    return _table(("network", "point", "bytes", "file / file", "parameters / file", "errors, clustered", "errors, tuned"), rows)


def native_table() -> str:
    """The native engine beside its peers on the same files, a call of one sample; the last line of each model counts."""
    last = {r["model"]: r for r in _lines("native") if r.get("batch") == 1 and "ms" in r}
    peers = ("ORT int8", "OpenVINO int8", "NNCF int8", "native fp32", "ORT fp32", "OpenVINO fp32")
    rows = [
        (
            name,
            r["rounds"],
            f"{r['ms']['native'] * 1e3:.1f} µs",
            *(f"{r['ms'][who] * 1e3:.1f}" if who in r["ms"] else "" for who in peers),
            f"{r['share_of_fastest_peer']:.2f} ({r['fastest_peer']})",
            f"{numbers:.0%}"
            if (numbers := r["agreement"].get("float, same numbers")) is not None
            else f"cosine {r['agreement']['float, cosine, mean']:.5f}",
        )
        for name, r in last.items()
    ]
    return _table(("model", "processes", "native int8", *peers, "share of the fastest peer's time", "outputs as ORT's, bit for bit"), rows)


def kernels_picture() -> str:
    """The kernels beside the peak as benchmarks/kernels.py measured them last."""
    last = _lines("kernels")[-1]
    words = {"u8s8": "8 bits", "f32": "float32", "bf16": "bfloat16"}
    peaks = ", ".join(f"{gops:.0f} GOP/s on {words[types]}" for types, gops in last["peaks_gops"].items())
    said = f"One thread of {last['cpu']}, level {last['isa']}, {last['date']}; peaks, measured: {peaks}."
    return f"{said}\n\n![Share of the peak that each kernel reaches](kernels.svg)"


def study_table() -> str:
    """The case study as `make study` wrote it, with its picture."""
    file = RESULTS / "study.json"
    if not file.exists():
        return "*No run in full is recorded here yet: `make study` makes one.*"
    found = json.loads(file.read_text())
    rows = []
    for row in found["rows"]:
        measured = "seconds" in row
        rows.append(
            (
                row["step"],
                f"{row['accuracy']:.2%}",
                f"{row['training_seconds']:.0f} s" if "training_seconds" in row else "",
                f"{row['seconds'] * 1e6:.1f} µs" if measured else "",
                f"{row['bytes'] / 1e3:.0f} kB" if measured else "",
                f"{row['joules'] * 1e6:.0f} µJ" if measured else "",
            )
        )
    samples = "MNIST, 10,000 test images" if found["mnist"] else "the 600 test digits that travel with hasten"
    said = f"{samples}; {found['epochs']} epochs each; a call of one image, one thread; energy is {found['rows'][-1]['energy']}.\n\n"
    table = _table(("step", "accuracy", "training", "a call", "size", "energy a call"), rows)
    return f"{said}{table}\n\n![Time of a call against errors, the size as area](study.svg)"


def dynamic_table() -> str:
    """What the data shows to be idle in real models, and what leaving it out brings; the last line of each model counts."""
    last = {r["model"]: r for r in _lines("dynamic")}
    rows = []
    for model, r in last.items():
        applied, undone = (", ".join(f"{count} {kind}" for kind, count in r[key].items()) or "none" for key in ("applied", "undone"))
        metric, before, after, _ = r["judged"].get("test", ("", None, None, None))
        judged = "" if before is None else f"{metric} {before:.4f} → {after:.4f}"
        macs, bytes_ = (f"−{1 - after / before:.1%}" if after < before else "" for before, after in (r["macs"], r["bytes"]))
        speed = f"× {r['speed']['onnxruntime']:.2f}" if "onnxruntime" in r["speed"] else ""
        rows.append((model, r["samples"], applied, undone, macs, bytes_, judged, speed))
    return _table(("model", "samples", "left out", "undone", "MACs", "weights", "on test", "onnxruntime"), rows)


def simplify_table() -> str:
    """Nodes that hasten and its peers leave, and the speed of what they made beside the original; a model's last lines count."""
    known: dict[str, dict[str, Any]] = {}
    for r in _lines("simplify"):
        known.setdefault(r["model"], {}).update(r)
    tools = ("hasten", "onnxslim", "onnxsim")
    rows = []
    for model, r in sorted(known.items()):
        nodes = [str(r[tool].get("nodes", "failed")) for tool in tools]
        speeds = [r.get("speed", {}).get(runtime, {}) for runtime in ("onnxruntime-plain", "onnxruntime")]
        rows.append((model, str(r["before"]), *nodes, *(" / ".join(f"{s[t]:.2f}" if t in s else "–" for t in tools) for s in speeds)))
    head = ("model", "nodes", *tools, "× speed, optimisation off", "× speed, on")
    return _table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "simplify": simplify_table,
    "dynamic": dynamic_table,
    "results": results_table,
    "accuracy": accuracy_table,
    "provable": provable_table,
    "profiles": profiles_table,
    "steps": steps_table,
    "distillation": distillation_table,
    "qat": qat_table,
    "binary": binary_table,
    "sparse": sparse_table,
    "pruning": pruning_table,
    "low_rank": low_rank_table,
    "packed": packed_table,
    "chain": chain_table,
    "ablation": ablation_table,
    "exhaustive": exhaustive_table,
    "deep_compression": deep_compression_table,
    "study": study_table,
    "native": native_table,
    "kernels": kernels_picture,
}


def filled(page: str) -> str:
    """The page with its tables. KeyError for a table that there is none of."""
    return re.sub(r"<!-- made: (\w+) -->", lambda found: TABLES[found[1]](), page)


# --- what mkdocs calls


def on_config(config: Any) -> Any:
    for entry in config.nav:
        if TECHNIQUES_NAV in entry:
            entry[TECHNIQUES_NAV] = ["techniques/index.md", *({row.verb: f"techniques/{row.verb}.md"} for row in plan.TECHNIQUES)]
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    return filled(markdown)
