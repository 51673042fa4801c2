"""Jobs: command lines that run one at a time on a device, and outlive tab and server.

`kinds` is the table of what can be run, `manager.Jobs` runs it, `uploads` keeps what users send,
`results` lists what they may fetch. A job is a folder: ``job.json`` beside its ``inputs/`` and its
``output/``. Nothing here knows of HTTP; `sightline.app.api` and the page are two ways in.
"""
