"""The typed pipeline, as `app.run` runs it. It acknowledges when the handler has ended, in order of arrival."""

from benchmarks.meter import Job
from benchmarks.ours.application import application

job = Job()
application(job).run(broker=f"mqtt://127.0.0.1:{job.port}")
