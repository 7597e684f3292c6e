# Files of runs that the study's `keep` lets go, once nothing that is planned reads them. No declared output: Snakemake
# would remove it before it runs the job, and only metrics.json tells it that a run is finished. So the output is a marker,
# asked for while the files are there.
rule prune:
    input:
        prune_inputs,
    output:
        f"{RESULTS}/.pruned/{{run}}/{{files}}",
    log:
        f"{RESULTS}/logs/prune/{{run}}.{{files}}.log",
    wildcard_constraints:
        files=r"state|weights|state\+weights",
    priority: 60
    localrule: True
    shell:
        "exec upcycle prune {wildcards.run:q} &> {log:q}"
