# The sweep as a DAG. `snakemake` runs the default study (config.yaml); `snakemake --profile slurm` the paper's
# (config/paper.yaml) on H100 nodes; `snakemake figure4`, `snakemake sweep_dense`, ... build one target.
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/plan.smk"


rule all:
    input:
        everything,
    localrule: True
    message:
        "Everything that the study names is built."


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/forecast.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/laws.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/report.smk"
