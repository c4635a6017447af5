"""The Optuna study: space, ask/tell loop, budget, proof, decision."""
