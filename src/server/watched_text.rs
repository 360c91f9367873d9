//! Files that are read again while the server runs.

/// The content of a file that is read regularly.
pub(super) struct WatchedText {
    /// Of the last read. A content is used when two reads return it: between them nothing wrote the file, so it is not
    /// the first part of a file that is being written.
    read: String,
    /// The last content that was used or refused, so that each is reported once.
    attempted: String,
}

impl WatchedText {
    /// Begins with a content that is in use.
    pub(super) fn new(text: String) -> Self {
        Self { read: text.clone(), attempted: text }
    }

    /// Returns the content of this read if it is to be used now.
    pub(super) fn changed(&mut self, text: String) -> Option<&str> {
        if self.read != text {
            self.read = text;
            return None;
        }
        if self.attempted == text {
            return None;
        }
        self.attempted = text;
        Some(&self.attempted)
    }

    /// The same for a content that is known to be complete, such as a download.
    pub(super) fn complete(&mut self, text: String) -> Option<&str> {
        self.read.clone_from(&text);
        self.changed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_used_once_when_two_reads_return_it() {
        let mut watched = WatchedText::new("a".to_owned());
        let used: Vec<bool> = ["a", "b", "ab", "ab", "ab", "a", "a"]
            .iter()
            .map(|text| watched.changed((*text).to_owned()).is_some())
            .collect();
        assert_eq!(used, [false, false, false, true, false, false, true]);
        assert_eq!(watched.complete("b".to_owned()), Some("b"));
        assert_eq!(watched.complete("b".to_owned()), None);
    }
}
