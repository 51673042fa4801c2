"""What people see of the app: Gradio tabs over the same jobs that the HTTP API runs.

Nothing is worked out here. A tab is made from the kinds of jobs (`sightline.app.jobs.kinds`), whose
options are those of the command line; it hands requests to `Jobs` and shows what becomes of them.
The drop zone, the card of a job, the board to mark objects on and the gallery are small scripts of
our own (``assets/``) that talk to the HTTP API of the same server, so that progress moves without
Gradio's queue, and a page that is loaded again finds its job by the address.
"""

from sightline.app.page.mount import mount_page

__all__ = ["mount_page"]
