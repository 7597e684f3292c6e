# One definition of training, six rules: a rule takes the runs whose id begins with its word.
# metrics.json, written last, is the only declared output: Snakemake deletes declared files before a retry, and
# weights and resume state must outlive that.
rule pretrain_dense:
    input:
        run_inputs,
    output:
        f"{RESULTS}/runs/{{run}}/metrics.json",
    log:
        f"{RESULTS}/logs/train/{{run}}.log",
    wildcard_constraints:
        run=W.runs_of("dense"),
    priority: PRIORITIES["dense"]
    threads: training_threads
    resources:
        **RESOURCES["train"],
    message:
        "Train {wildcards.run}"
    shell:
        "exec upcycle train {wildcards.run:q} &> {log:q}"


use rule pretrain_dense as pretrain_moe with:
    wildcard_constraints:
        run=W.runs_of("moe"),
    priority: PRIORITIES["moe"]


use rule pretrain_dense as upcycle with:
    wildcard_constraints:
        run=W.runs_of("up"),
    priority: PRIORITIES["up"]


use rule pretrain_dense as import_checkpoint with:
    wildcard_constraints:
        run=W.runs_of("import"),
    priority: PRIORITIES["import"]
    message:
        "Import {wildcards.run}"


use rule pretrain_dense as continue_dense with:
    wildcard_constraints:
        run=W.runs_of("cont"),
    priority: PRIORITIES["cont"]


use rule pretrain_dense as decay with:
    wildcard_constraints:
        run=W.runs_of("decay"),
    priority: PRIORITIES["decay"]


for sweep_name in W.plan.sweeps:

    rule:
        name:
            f"sweep_{sweep_name}"
        input:
            sweep_runs(sweep_name),
        localrule: True
        message:
            f"Every run of sweep {sweep_name} is finished."
