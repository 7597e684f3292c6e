# The page that people read, of any study that upcycles. (`snakemake --report` builds Snakemake's own beside it.)
if W.has_report:

    rule report:
        input:
            gathered("report"),
        output:
            f"{W.out}/report.html",
            f"{W.out}/summary.txt",
        log:
            f"{W.out}/logs/report.log",
        resources:
            **RESOURCES["small"],
        message:
            "Write the report"
        shell:
            "exec upcycle report &> {log:q}"
