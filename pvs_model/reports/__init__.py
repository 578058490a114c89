"""Reports: HTML pages and figures of cases, cohorts and evaluations, from one base template."""
