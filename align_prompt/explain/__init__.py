"""Pictures of what was learned, and the numbers behind them: plans, attention, words, mistakes."""
