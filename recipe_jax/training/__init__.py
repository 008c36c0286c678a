"""Training, generic over pytrees: state, step, loop, checkpoints and tracking."""
