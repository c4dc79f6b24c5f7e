"""Books and dialogues: texts in, sound files, chapters and subtitles out."""
