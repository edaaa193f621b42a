//! Where the bytes of a file come from.

/// Where the bytes of a file come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The daemon's own memory, or a read that another session began.
    Cache,
    /// The store, which keeps the content.
    Pack,
    /// The page cache of the kernel.
    PageCache,
    /// The disk, past the page cache.
    Direct,
    /// The disk, through the page cache, on file systems that refuse direct reads.
    Buffered,
}

impl Source {
    /// All sources.
    pub(crate) const ALL: [Self; 5] = [Self::Cache, Self::Pack, Self::PageCache, Self::Direct, Self::Buffered];

    /// Returns the name in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Pack => "pack",
            Self::PageCache => "page_cache",
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }
}

/// Numbers of bytes, by where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BySource([u64; Source::ALL.len()]);

impl BySource {
    /// Returns the bytes of one source.
    pub(crate) fn of(source: Source, bytes: usize) -> Self {
        let mut all = Self::default();
        all.add(source, bytes);
        all
    }

    /// Adds bytes of a source.
    pub(crate) fn add(&mut self, source: Source, bytes: usize) {
        self.0[source as usize] += bytes as u64;
    }

    /// Returns the sources with their bytes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Source, u64)> {
        Source::ALL.into_iter().zip(self.0)
    }
}
