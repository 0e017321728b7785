"""What pages share: reading artifacts, the frame around them, forms, sentences. No torch here either."""
