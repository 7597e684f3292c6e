"""`upcycle advise`: upcycle a dense model, train a mixture from scratch, or train the dense model on? With what budget?

D, D1, D2 in tokens, N1 in non-embedding parameters, losses in nats. docs/advice.md says how to read the answer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace

from upcycle.decisions.advice.answer import Advice, ComputeOptimal, Laws, Question, Row
from upcycle.decisions.advice.expectations import (
    Expected,
    Reach,
    Verdict,
    compare_options,
    distances,
    expected,
    tokens_to_reach,
    verdict_of,
)
from upcycle.decisions.advice.recommendation import Option, recommend
from upcycle.decisions.advice.rules import rules_of_thumb
from upcycle.decisions.advice.settling import settling_run
from upcycle.decisions.advice.words import advice_in_words, short_answer
from upcycle.decisions.allocation import upcycled_bands
from upcycle.decisions.curves import ThreeLaws, from_fits, published, read_fits
from upcycle.decisions.published import PAPER_ERROR
from upcycle.decisions.quantities import quantity
from upcycle.decisions.thresholds import HIGH, Window, d_star, equation_2, threshold_d2, threshold_flops
from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.study.spec import short_count

UPCYCLED = "upcycled"
SCRATCH = "MoE from scratch, same FLOPs"
SCRATCH_PAID = "MoE from scratch, dense FLOPs too"
SCRATCH_D1 = "MoE from scratch, D1 tokens"
DENSE = "dense model as it is"
DENSE_ON = "dense model trained on, same FLOPs"

RUN_NOISE = 0.003
"""Noise of one measured loss in nats, where the error of the laws is not known."""
SHARES_OF_D1 = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Budgets of the table, as D2 / D1."""
OPTION_OF: dict[str, Option] = {UPCYCLED: "upcycle", SCRATCH: "scratch", DENSE_ON: "dense"}
"""What is recommended, by the expected loss of it: the three that cost the same FLOPs."""
LEAST_TOKENS = 1000.0
"""Fewer parameters or tokens than this are a typing error (7 for 7B)."""


def advise(
    three: ThreeLaws,
    n1: float,
    d1: float,
    *,
    tokens: float | None = None,
    flops: float | None = None,
    gpu_hours: float | None = None,
    n_expert: int | None = None,
    top_k: int | None = None,
    flops_per_second: float = 400e12,
    law_error: float | None = None,
) -> Advice:
    """Upcycle or train from scratch, with at most one of `tokens` (D2), `flops`, `gpu_hours` to spend on the mixture.

    The mixture is that of the laws unless said otherwise; `law_error` is the error of a predicted loss in nats. Raises
    `UserError` for budgets that clash or come to less than 1,000 tokens, a mixture that cannot be, and fits without a
    law of MoEs from scratch.
    """
    three.need("moe")
    asked, laws = _of_mixture(three, n_expert, top_k, law_error)
    per_token = 6 * asked.active_ratio * n1
    d2 = budget_tokens(per_token, flops_per_second, tokens, flops, gpu_hours)
    spent = None if d2 is None else per_token * d2
    hours = None if spent is None else spent / flops_per_second / 3600
    n2 = asked.active_ratio * n1
    question = Question(n1, d1, asked.n_expert, asked.top_k, n2, d2, spent, hours, flops_per_second)
    losses = () if d2 is None else _losses(asked, n1, d1, d2, flops_per_second)
    comparisons = tuple(compare_options(losses[0], other, law_error) for other in losses[1:])
    table = tuple(_row(asked, n1, d1, share, law_error, flops_per_second) for share in SHARES_OF_D1)
    thresholds = (threshold_d2(asked, n1, d1), threshold_flops(asked, n1, d1), d_star(asked, n1))
    verdicts = {verdict_of(each) for each in (comparisons[:1] or [row.comparison for row in table])}
    verdict: Verdict = verdicts.pop() if len(verdicts) == 1 else "depends on the budget"
    # Without a budget the run worth making is about the flip: there the answer is most open.
    about = d2 if d2 is not None else (d1 if thresholds[0].root is None else thresholds[0].root)
    asked_tokens = (d2,) if d2 is not None else tuple(row.tokens for row in table)
    far = distances(three, n1, d1, asked_tokens)
    overtakes = _overtakes_dense(three, n1, d1)
    optimum, no_optimum = _compute_optimal(asked, n1, d1, flops_per_second)
    notes = _notes(three, question, laws, overtakes, min(asked_tokens)) + no_optimum
    options: dict[Option, Expected] = {OPTION_OF[each.what]: each for each in losses if each.what in OPTION_OF}
    found = recommend(asked, n1, d1, options, law_error)
    return Advice(
        question=question,
        recommendation=found,
        verdict=verdict,
        statement=short_answer(found, options, table, thresholds[0], far, laws, notes[0]),
        losses=losses,
        comparisons=comparisons,
        catch_up=tokens_to_reach(three.need("moe"), "D", losses[0].rows, N1=n1) if losses else None,
        overtakes_dense=overtakes,
        thresholds=thresholds,
        table=table,
        compute_optimal=optimum,
        distances=far,
        settling_run=settling_run(
            asked, d1, about, n1, noise=law_error or RUN_NOISE, flops_per_second=flops_per_second
        ),
        rules_of_thumb=rules_of_thumb(d1, d2, asked.active_ratio, float(equation_2(n1)), three.data_tokens),
        laws=laws,
        notes=notes,
    )


def _of_mixture(
    three: ThreeLaws, n_expert: int | None, top_k: int | None, law_error: float | None
) -> tuple[ThreeLaws, Laws]:
    """The laws with the mixture asked for, whose N2 sets the FLOPs (losses stay the laws' own), and their record."""
    n_expert, top_k = three.n_expert if n_expert is None else n_expert, three.top_k if top_k is None else top_k
    if n_expert < 1:
        raise UserError(f"a mixture of {n_expert} experts: n_expert is at least 1")
    if not 1 <= top_k <= n_expert:
        raise UserError(f"a mixture of {n_expert} experts cannot use {top_k} of them: choose 1 to {n_expert}")
    laws = Laws(
        source=three.source,
        rounded=three.rounded,
        paired=three.paired,
        n_expert=three.n_expert,
        top_k=three.top_k,
        hold_for_this_mixture=(n_expert, top_k) == (three.n_expert, three.top_k),
        error=law_error,
        draws=three.n_draws,
        data_tokens=three.data_tokens,
    )
    return replace(three, n_expert=n_expert, top_k=top_k), laws


def budget_tokens(
    per_token: float, rate: float, tokens: float | None, flops: float | None, gpu_hours: float | None
) -> float | None:
    """The budget as D2, by C = 6 N2 D2 (section 5.2); None if it is left open."""
    if sum(given is not None for given in (tokens, flops, gpu_hours)) > 1:
        raise UserError("give one budget: tokens, FLOPs or GPU-hours")
    if gpu_hours is not None:
        flops = gpu_hours * 3600 * rate
    if flops is not None:
        tokens = flops / per_token
    if tokens is not None and tokens > HIGH:
        raise UserError(
            f"the budget comes to {tokens:.3g} tokens of this mixture, and the laws are evaluated up to {HIGH:g}"
        )
    if tokens is not None and tokens < LEAST_TOKENS:
        raise UserError(
            f"the budget comes to {tokens:.3g} tokens of this mixture: give at least {LEAST_TOKENS:g} "
            f"({LEAST_TOKENS * per_token:.3g} FLOPs)"
        )
    return tokens


def _losses(three: ThreeLaws, n1: float, d1: float, d2: float, rate: float) -> tuple[Expected, ...]:
    """Upcycled with the whole budget first, then the alternatives, the one that gives the verdict first."""
    moe, per_token = three.need("moe"), 6 * three.active_ratio * n1
    flops, paid = per_token * d2, d2 + d1 / three.active_ratio
    found = [
        expected(UPCYCLED, three.upcycled, d2, flops, rate, D1=d1, D2=d2, N1=n1),
        expected(SCRATCH, moe, d2, flops, rate, D=d2, N1=n1),
        expected(SCRATCH_PAID, moe, paid, per_token * paid, rate, D=paid, N1=n1),
        expected(SCRATCH_D1, moe, d1, per_token * d1, rate, D=d1, N1=n1),
    ]
    if three.dense is not None:
        more = d2 * three.active_ratio
        found += [
            expected(DENSE, three.dense, d1, 0.0, rate, D=d1, N1=n1),
            expected(DENSE_ON, three.dense, d1 + more, 6 * n1 * more, rate, D=d1 + more, N1=n1),
        ]
    return tuple(found)


def _row(three: ThreeLaws, n1: float, d1: float, share: float, law_error: float | None, rate: float) -> Row:
    found = {each.what: each for each in _losses(three, n1, d1, share * d1, rate)}
    upcycled, scratch, dense_on = found[UPCYCLED], found[SCRATCH], found.get(DENSE_ON)
    return Row(
        share,
        share * d1,
        upcycled.flops,
        upcycled.gpu_hours,
        upcycled.loss,
        scratch.loss,
        None if dense_on is None else dense_on.loss,
        compare_options(upcycled, scratch, law_error),
    )


def _overtakes_dense(three: ThreeLaws, n1: float, d1: float) -> Reach | None:
    """The D2 at which the upcycled loss is that of the dense model: below it, Equation 12 breaks Requirement 2."""
    if three.dense is None:
        return None
    return tokens_to_reach(three.upcycled, "D2", three.dense.loss_rows(D=d1, N1=n1), D1=d1, N1=n1)


def _compute_optimal(
    three: ThreeLaws, n1: float, d1: float, rate: float
) -> tuple[ComputeOptimal | None, tuple[str, ...]]:
    """The D2 of Equation 14 (of any law with sizes), or a note that says why there is none."""
    try:
        found = upcycled_bands(three, d1, n1)
    except UserError as error:
        return None, (f"No compute-optimal D2: {error}.",)
    if not math.isfinite(found.d2):
        return None, ("No compute-optimal D2: by the central estimate more tokens do not lower the loss at this D1.",)
    notes: tuple[str, ...] = ()
    if found.share_without > 0:
        notes = (f"{found.share_without:.1%} of the draws have no compute-optimal D2; its band leaves them out.",)
    flops = 6 * three.active_ratio * n1 * found.d2
    return ComputeOptimal(found.d2, found.d2_band, flops, flops / rate / 3600, found.exponent), notes


def _notes(three: ThreeLaws, question: Question, laws: Laws, overtakes: Reach | None, tokens: float) -> tuple[str, ...]:
    """Caveats, the gravest first. There is always one."""
    notes = []
    if not laws.hold_for_this_mixture:
        notes.append(
            f"The laws are of {three.n_expert} experts, top-{three.top_k}, not {question.n_expert}, "
            f"top-{question.top_k}: the FLOPs hold for this mixture, the losses do not."
        )
    grave, rest = ((), three.notes) if three.rounded else (three.notes[:-1], three.notes[-1:])
    notes += grave  # of fits: parameters that are not identifiable, simulated losses
    if overtakes is not None and (overtakes.tokens is None or overtakes.tokens > tokens):
        where = "At every D2 near the data"
        if overtakes.tokens is not None and Window(three.data_tokens).counted((overtakes.tokens,)):
            where = f"Below D2 = {short_count(overtakes.tokens)}"
        notes.append(
            f"{where} the upcycled law lies above the dense loss it starts from: upcycling may do better. A copy "
            "starts at the dense loss, but this law does not meet the dense law as D2 -> 0: trust it little there."
        )
    if laws.draws == 0:
        notes.append("The fits have no draws: there are no bands, and the verdict is that of the central estimate.")
    if laws.error is None:
        notes.append("The laws' own error on one loss is not known, so the verdict does not include it.")
    if not notes:
        notes.append("Bands are of the laws' parameters, not of their form.")
    return (*notes, *rest)


def given_budget(args: argparse.Namespace) -> dict[str, float]:
    """The budget on the command line, as `advise` takes it; empty where it is left open.

    Raises `UserError` for a number that cannot be read.
    """
    return {
        name: quantity(text, f"--{name.replace('_', '-')}")
        for name in ("tokens", "flops", "gpu_hours")
        if (text := getattr(args, name)) is not None
    }


def error_of(fits: Mapping[str, FitResult], three: ThreeLaws) -> float | None:
    """Error of the upcycled law of these fits: leave-one-out RMS in nats, else the RMS of its residuals."""
    for fit in fits.values():
        if fit.law == three.upcycled.law.name and fit.by is None and fit.values == dict(three.upcycled.values):
            return fit.loo_rms if fit.loo_rms is not None else fit.rms
    return None


def run_advise(args: argparse.Namespace) -> None:
    """The verb: print the answer in five lines, with --full all that it rests on, with --json as JSON.

    Raises `UserError` for numbers that cannot be read.
    """
    if args.d1 is None:
        raise UserError("--d1 is missing: the tokens that the dense model of --n1 was trained on, e.g. 2e12")
    for name in ("n1", "d1"):
        if quantity(getattr(args, name), f"--{name}") > HIGH:
            raise UserError(f"--{name}: `{getattr(args, name)}` is above {HIGH:g}, up to which the laws are evaluated")
    n1 = quantity(args.n1, "--n1", least=LEAST_TOKENS, unit="parameters")
    d1 = quantity(args.d1, "--d1", least=LEAST_TOKENS, unit="tokens")
    rate = quantity(args.flops_per_second, "--flops-per-second")
    budget = given_budget(args)
    fits = None if args.fits is None else read_fits(args.fits)
    three = published() if fits is None else from_fits(fits, f"fits in {args.fits}")
    law_error = PAPER_ERROR if fits is None else error_of(fits, three)
    advice = advise(
        three,
        n1,
        d1,
        **budget,
        n_expert=args.n_expert,
        top_k=args.top_k,
        flops_per_second=rate,
        law_error=law_error,
    )
    if args.json:
        print(json.dumps(advice.to_json(), indent=1, allow_nan=False))
    else:
        print(advice_in_words(advice) if args.full else advice.statement)
