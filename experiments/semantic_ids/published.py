"""What others report on the same files and split of Beauty; none of it was measured here."""

PUBLISHED = {
    "TIGER, as published (Rajput et al. 2023, arXiv:2305.05065)": {
        "recall_at_5": 0.0454,
        "ndcg_at_5": 0.0321,
        "recall_at_10": 0.0648,
        "ndcg_at_10": 0.0384,
    },
    "TIGER, as others reproduced it, lowest": {"recall_at_5": 0.034},
    "TIGER, as others reproduced it, highest": {"recall_at_5": 0.042},
    "SASRec, tuned by others": {"recall_at_5": 0.0508},
}
"""Name -> metrics."""
