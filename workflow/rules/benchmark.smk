# Scores on the benchmarks of Table 7, a job for each model and task.
rule benchmark:
    input:
        benchmark_inputs,
    output:
        f"{RESULTS}/runs/{{run}}/benchmarks/{{benchmark}}.json",
    log:
        f"{RESULTS}/logs/benchmark/{{run}}.{{benchmark}}.log",
    wildcard_constraints:
        benchmark="|".join(sorted({asked for _, asked in BENCHMARKS}))
        or "no-such-benchmark",
    resources:
        **RESOURCES["evaluate"],
    params:
        words=benchmark_words,
    message:
        "Score {wildcards.run} on {wildcards.benchmark}"
    shell:
        "exec upcycle benchmark {wildcards.run:q} {params.words:q} &> {log:q}"


if W.study.benchmarks:

    rule benchmarks:
        input:
            gathered("benchmarks"),
        output:
            f"{W.out}/benchmarks.csv",
        log:
            f"{W.out}/logs/benchmarks.log",
        localrule: True
        message:
            "Gather scores on benchmarks"
        shell:
            "exec upcycle benchmarks &> {log:q}"
