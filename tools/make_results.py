"""Writes the table of results into README.md and README.zh-CN.md, from benchmarks/results/peers.jsonl.

    python tools/make_results.py           # write
    python tools/make_results.py --check   # exit code 1 where a table is not current

The last line of each model counts. Rows where hasten lost, or returned the original, are there like all others, and marked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.models import NAMES  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "peers.jsonl"
BEGIN, END = "<!-- results: tools/make_results.py writes this -->", "<!-- end of results -->"
HASTEN, BASELINE = "hasten's choice", "ORT fp32"

WORDS = {
    "README.md": {
        "header": ("model", "hasten's choice", "time: hasten / ORT fp32", "time: hasten / fastest peer in budget", "{} before → after", ""),
        "accuracy": "accuracy",
        "agreement": "the cosine with the original's output",
        "faster": "faster than all",
        "even": "as fast as the fastest",
        "lost": "**hasten lost**",
        "original": "**the original was returned**",
        "broken": "**the budget was broken**",
        "caption": "Time of a call at batch 1, {threads} threads, medians over {rounds} fresh processes each; below 1 hasten is faster ({dates}).",
        "other": "For {models} the last column but one is {judged}.",
    },
    "README.zh-CN.md": {
        "header": ("模型", "hasten 的选择", "时间：hasten / ORT fp32", "时间：hasten / 预算内最快的同类工具", "{} 前 → 后", ""),
        "accuracy": "准确率",
        "agreement": "与原模型输出的余弦",
        "faster": "比所有对手都快",
        "even": "与最快者相同",
        "lost": "**hasten 输了**",
        "original": "**返回了原模型**",
        "broken": "**超出了预算**",
        "caption": "单次调用的时间，批大小 1，{threads} 个线程，各取 {rounds} 个新进程的中位数；小于 1 表示 hasten 更快（{dates}）。",
        "other": "{models} 的倒数第二列是{judged}。",
    },
}


def newest(text: str) -> list[dict[str, Any]]:
    """The last report of each model, in the order of the benchmarks' models; models that they do not have come last."""
    reports = {report["model"]: report for line in text.splitlines() if line.strip() for report in [json.loads(line)]}
    order = {name: i for i, name in enumerate(NAMES)}
    return sorted(reports.values(), key=lambda report: order.get(report["model"], len(order)))


def outcome(report: dict[str, Any]) -> str:
    """`original` (hasten gave the model back), `broken` (its choice misses the budget here), `lost` (a peer was faster), `even` or `faster`."""
    if report["chosen"] == f"original · onnxruntime · {report['threads']}T":
        return "original"
    if not report["rows"][HASTEN]["keeps_budget"]:
        return "broken"
    ratio = report["hasten_to_fastest_peer"]
    return "lost" if ratio > 1 else "even" if ratio == 1 else "faster"


def table(reports: list[dict[str, Any]], words: dict[str, Any]) -> str:
    """The table as Markdown with its caption; empty where there are no reports."""
    if not reports:
        return ""
    header = [cell.format(words["accuracy"]) for cell in words["header"]]
    lines = [header, ["---", "---", "---:", "---:", "---", "---"]] + [_row(report, words) for report in reports]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    facts = {key: ", ".join(sorted({str(report[key]) for report in reports})) for key in ("threads", "rounds", "date")}
    caption = words["caption"].format(threads=facts["threads"], rounds=facts["rounds"], dates=facts["date"])
    unlabelled = ", ".join(report["model"] for report in reports if report["judged_by"] != "accuracy")
    more = " " + words["other"].format(models=unlabelled, judged=words["agreement"]) if unlabelled else ""
    return f"{text}\n\n{caption}{more}\n"


def _row(report: dict[str, Any], words: dict[str, Any]) -> list[str]:
    before, after = (report["rows"][name]["value"] for name in (BASELINE, HASTEN))
    return [
        report["model"],
        report["chosen"],
        f"{report['hasten_to_ort_fp32']:.3f}",
        f"{report['hasten_to_fastest_peer']:.3f} ({report['fastest_peer']})",
        f"{before:.4f} → {after:.4f}",
        words[outcome(report)],
    ]


def with_table(page: str, made: str) -> str:
    """The page with what stands between its two markers replaced. Raises ValueError where it has no such pair."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the markers {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{made}{END}{after}"


def main() -> int:
    reports = newest(RESULTS.read_text()) if RESULTS.exists() else []
    stale = 0
    for name, words in WORDS.items():
        page = ROOT / name
        made = with_table(page.read_text(), table(reports, words))
        if made != page.read_text():
            stale += 1
            print(f"{name}: {'not current' if '--check' in sys.argv else 'written'}")
            if "--check" not in sys.argv:
                page.write_text(made)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    raise SystemExit(main())
