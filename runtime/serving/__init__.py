"""Serves a model over HTTP with the interface of OpenAI: `fastblt.runtime.serving.app.create_app`."""
