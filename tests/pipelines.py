"""The pipeline on one request, without a delivery."""


def run(pipeline, request, *arguments, **named):
    """Resolve the route of `request`, run `pipeline` and return its report."""
    return pipeline.run(pipeline.resolve(request), *arguments, **named)
