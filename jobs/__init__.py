"""The commands: one file per kind of job, each one page that shows the whole job. Installed as gradosr.jobs."""
