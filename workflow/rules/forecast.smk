# Forecasts of larger runs by laws fitted to smaller ones, written before the larger ones train, and once. A forecast that
# is written matches no rule, so no edit of code or config makes Snakemake write it again.
rule forecast:
    input:
        forecast_inputs,
    output:
        f"{W.out}/forecasts/{{forecast}}.json",
    log:
        f"{W.out}/logs/forecasts/{{forecast}}.log",
    wildcard_constraints:
        forecast=W.forecasts_not_written,
    priority: 50
    resources:
        **RESOURCES["small"],
    message:
        "Forecast {wildcards.forecast}"
    shell:
        "exec upcycle forecast {wildcards.forecast:q} &> {log:q}"
