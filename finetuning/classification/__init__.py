"""Classification: telling good reviews from bad ones, with a bag of words and with a GPT."""
