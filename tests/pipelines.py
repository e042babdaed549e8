"""A pipeline on one request, as the task runs it but without a delivery."""


def run(pipeline, request, *arguments, **named):
    """Return the report of `request`, after its route was resolved."""
    return pipeline.run(pipeline.resolve(request), *arguments, **named)
