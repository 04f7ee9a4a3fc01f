"""What carving SmolLM2-135M-Instruct costs: perplexity, error and load of each layer, CPU time.

    python -m benchmarks.carve                     # the preset, and the same sizes with a refit
    python -m benchmarks.carve --texts ag.jsonl    # calibrated and measured on your own texts
    python -m benchmarks.carve --variants "no refit" --layouts FILE   # writes the preset's layout

Perplexity is that of held-out texts; the relative errors are of calibration tokens, so those after
a refit are optimistic.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from fedmoe_app.moe.carve.convert import carve
from fedmoe_app.moe.carve.preset import LAYOUTS, PLAN, read_layouts, wheel_base, write_layouts
from fedmoe_app.moe.carve.texts import EMBEDDED, batches_of, perplexity, read_texts, tokens_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", default=EMBEDDED)
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--layouts", type=Path)
    parser.add_argument("--variants", default="preset,refit")
    options = parser.parse_args()
    base = wheel_base()
    tokenizer, dense = base.tokenizer(), base.model()
    fit_texts, held_texts = read_texts(options.texts, options.text_field, PLAN.seed)
    fit = batches_of(tokenizer, fit_texts, options.max_length, options.tokens)
    held = batches_of(tokenizer, held_texts, options.max_length)
    print(f"{options.texts}: {tokens_of(fit)} calibration, {tokens_of(held)} held-out tokens")
    print("\n| | perplexity | error by layer | least and most used | CPU s |")
    print("| --- | --- | --- | --- | --- |")
    before = perplexity(dense, held)
    print(f"| dense | {before:.1f} | | | |", flush=True)
    for variant in options.variants.split(","):
        known = read_layouts(LAYOUTS) if variant == "preset" else ()
        plan = replace(PLAN, refit=variant == "refit")
        start = time.process_time()
        made = carve(dense, plan, () if known else fit, known)
        seconds = time.process_time() - start
        if options.layouts and variant == "no refit":
            write_layouts(options.layouts, made.layouts)
        after = perplexity(made.model, held)
        error = " ".join(f"{report.error:.2f}" for report in made.reports)
        load = [share for report in made.reports for share in report.load] or [1.0]
        print(
            f"| {variant} | {after:.1f} ({after / before - 1:+.0%}) | {error} | "
            f"{min(load):.2f} / {max(load):.2f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
