//! The clusters of a pool: who holds them, which are free, and the pages of metadata in some.
//!
//! A cluster is free, taken (for a write whose mapping is not published yet), held by as many as
//! its count says, full of metadata pages, or fixed. Counts follow from the maps and are not on
//! disk.
//!
//! Clusters are taken through a [`Run`], a stream's window of up to 64 free clusters that lie side
//! by side. So one stream gets contiguous space and two do not mix. What is free in the window of
//! somebody else is given only when there is nothing else.
//!
//! What it does not do: it knows nothing of grace periods and of what a crash may go back to. Who
//! releases a cluster or frees a page must have waited for those.

mod bits;
mod counts;
mod pages;

use bits::Bits;
use counts::{Counts, FIXED, METADATA, TAKEN};
use pages::Pages;

use crate::limits::{
    DEVICE_SHIFT, MAX_DEVICE_CLUSTERS, MAX_DEVICES, MIN_RESERVE_CLUSTERS, RESERVE_DIVISOR,
    WINDOW_CLUSTERS,
};

/// A stream's claim on free clusters, from [`Space::take`] to [`Space::close_run`].
#[derive(Debug, Default)]
pub struct Run {
    /// Number of its window, from 1; 0 when it has none yet.
    window: u32,
}

/// Clusters that a run has for itself: those of one word of its device's free clusters.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Its first cluster.
    first: u32,
    /// Those that are free still.
    free: u64,
    /// Whether a run has it.
    open: bool,
}

#[derive(Debug, Default)]
struct Device {
    /// 0 when there is no such device.
    clusters: u32,
    readonly: bool,
    counts: Counts,
    /// Clusters that are free and in no window.
    free: Bits,
    /// Words of `free` that have all 64.
    whole: Bits,
    /// Free clusters, those in windows too.
    free_count: u64,
    fixed_count: u64,
    /// Where to look for the next window: a word of `free`.
    cursor: usize,
}

/// All clusters of a pool.
#[derive(Debug)]
pub struct Space {
    devices: Vec<Device>,
    windows: Vec<Window>,
    free_windows: Vec<u32>,
    /// The device that the next window is looked for on first.
    next_device: usize,
    /// Free clusters of the devices that may be written.
    free: u64,
    /// Of those, what is left to metadata.
    reserve: u64,
    /// Of those, what is kept for reserved volumes.
    promised: u64,
    /// Of those, what the next checkpoint may take.
    due: u64,
    /// A bug, for the simulator: what is free in a window is its run's alone.
    windows_kept: bool,
    pages: Pages,
}

const PLACE_MASK: u32 = MAX_DEVICE_CLUSTERS - 1;

fn device_of(cluster: u32) -> usize {
    (cluster >> DEVICE_SHIFT) as usize
}

fn place_of(cluster: u32) -> u32 {
    cluster & PLACE_MASK
}

fn cluster_at(device: usize, place: u32) -> u32 {
    (device as u32) << DEVICE_SHIFT | place
}

impl Space {
    /// The space of devices of so many clusters each; 0 where there is none. All is free, but for
    /// the first cluster of each device, which is fixed.
    pub fn new(devices: &[u32]) -> Space {
        assert!(devices.len() <= MAX_DEVICES, "cluster numbers name 16 devices");
        let mut space = Space {
            devices: Vec::new(),
            windows: Vec::new(),
            free_windows: Vec::new(),
            next_device: 0,
            free: 0,
            reserve: 0,
            promised: 0,
            due: 0,
            windows_kept: false,
            pages: Pages::default(),
        };
        space.devices.resize_with(MAX_DEVICES, Device::default);
        for (device, &clusters) in devices.iter().enumerate().filter(|(_, size)| **size > 0) {
            space.add_device(device, clusters);
        }
        space
    }

    /// A device comes to the pool.
    pub fn add_device(&mut self, device: usize, clusters: u32) {
        assert!(self.devices[device].clusters == 0, "device {device} is there already");
        self.grow_device(device, clusters);
        self.mark_fixed(cluster_at(device, 0));
    }

    /// A device has `clusters` clusters now, no fewer than before.
    pub fn grow_device(&mut self, device: usize, clusters: u32) {
        let state = &mut self.devices[device];
        let before = state.clusters;
        assert!((before..=MAX_DEVICE_CLUSTERS).contains(&clusters), "devices only grow");
        state.clusters = clusters;
        state.counts.resize(clusters);
        state.free.resize(clusters as usize);
        state.whole.resize((clusters as usize).div_ceil(WINDOW_CLUSTERS as usize));
        let mut place = before;
        while place < clusters {
            let index = place / WINDOW_CLUSTERS;
            let end = clusters.min((index + 1) * WINDOW_CLUSTERS);
            let count = end - place;
            let free = u64::MAX >> (WINDOW_CLUSTERS - count) << (place % WINDOW_CLUSTERS);
            self.give_word(device, index as usize, free);
            self.count_free(device, i64::from(count));
            place = end;
        }
        self.set_reserve();
    }

    /// A device leaves the pool. Nothing on it is held any more ([`Space::used_clusters`]).
    pub fn remove_device(&mut self, device: usize) {
        self.set_readonly(device, true);
        self.devices[device] = Device::default();
        self.pages.set_readonly(device, false);
        self.set_reserve();
    }

    /// Nothing is taken on a read-only device, clusters or pages; what is free on it does not
    /// count as free space.
    pub fn set_readonly(&mut self, device: usize, readonly: bool) {
        if self.devices[device].readonly == readonly {
            return;
        }
        for number in 0..self.windows.len() {
            if device_of(self.windows[number].first) == device {
                self.empty_window(number);
            }
        }
        let state = &mut self.devices[device];
        state.readonly = readonly;
        if readonly {
            self.free -= state.free_count;
        } else {
            self.free += state.free_count;
        }
        self.pages.set_readonly(device, readonly);
        self.set_reserve();
    }

    fn set_reserve(&mut self) {
        self.reserve = (self.total_clusters() / RESERVE_DIVISOR).max(MIN_RESERVE_CLUSTERS);
    }

    /// Clusters of the devices that may be written.
    pub fn total_clusters(&self) -> u64 {
        let writable = self.devices.iter().filter(|device| !device.readonly);
        writable.map(|device| u64::from(device.clusters)).sum()
    }

    /// Free ones among them.
    pub fn free_clusters(&self) -> u64 {
        self.free
    }

    /// Free ones that data may have: all but the reserve, what is promised, and what is due.
    pub fn available_clusters(&self) -> u64 {
        self.free.saturating_sub(self.reserve + self.promised + self.due)
    }

    /// The next checkpoint may take so many clusters: data leaves them to it.
    #[inline]
    pub fn set_due(&mut self, clusters: u64) {
        self.due = clusters;
    }

    /// Whether data could have a cluster if what is due were written.
    pub fn is_short_of_due(&self) -> bool {
        self.free > self.reserve + self.promised
    }

    /// Clusters that are kept for those who take them by [`Space::take_promised`].
    pub fn promised(&self) -> u64 {
        self.promised
    }

    /// So many clusters are kept.
    pub fn set_promised(&mut self, clusters: u64) {
        self.promised = clusters;
    }

    /// How many clusters are missing for `more` to be promised; for 0, how many for metadata of
    /// something new, to which half of the reserve is open.
    pub fn lacking(&self, more: u64) -> u64 {
        let reserve = if more == 0 { self.reserve / 2 } else { self.reserve };
        (self.promised + self.due + more + reserve).saturating_sub(self.free)
    }

    /// Clusters of a device that are neither free nor fixed.
    pub fn used_clusters(&self, device: usize) -> u64 {
        let state = &self.devices[device];
        u64::from(state.clusters) - state.free_count - state.fixed_count
    }

    /// Whether there is such a cluster and it may have data.
    pub fn may_hold(&self, cluster: u32) -> bool {
        self.devices[device_of(cluster)].clusters > place_of(cluster)
            && !matches!(self.count(cluster), METADATA | FIXED)
    }

    /// How many hold a cluster.
    pub fn holders(&self, cluster: u32) -> u32 {
        match self.count(cluster) {
            TAKEN | METADATA | FIXED => 0,
            count => count,
        }
    }

    /// Takes a free cluster for data: the next of the run's. `None` when only the reserve is left,
    /// what is promised, and what is due.
    #[inline]
    pub fn take(&mut self, run: &mut Run) -> Option<u32> {
        if self.free <= self.reserve + self.promised + self.due {
            return None;
        }
        self.take_any(run)
    }

    /// The same for who was promised it, which has that much less coming. The reserve has been
    /// there when the promise was made; what metadata took of it since is not missed here. `None`
    /// when it took nearly all: the next checkpoint needs the rest.
    pub fn take_promised(&mut self, run: &mut Run) -> Option<u32> {
        if self.free <= self.reserve / 4 {
            return None;
        }
        let cluster = self.take_any(run)?;
        self.promised = self.promised.saturating_sub(1);
        Some(cluster)
    }

    #[inline]
    fn take_any(&mut self, run: &mut Run) -> Option<u32> {
        let cluster = self.claim(run)?;
        self.set_count(cluster, TAKEN);
        Some(cluster)
    }

    /// Whether it was taken and nobody holds it yet.
    pub fn is_taken(&self, cluster: u32) -> bool {
        self.count(cluster) == TAKEN
    }

    /// Gives back what nobody came to hold.
    pub fn untake(&mut self, cluster: u32) {
        assert!(self.count(cluster) == TAKEN, "cluster {cluster:#x} is not just taken");
        self.free_cluster(cluster);
    }

    /// One more holds the cluster. One that is free is taken by that (replay of a journal).
    #[inline]
    pub fn acquire(&mut self, cluster: u32) {
        match self.count(cluster) {
            METADATA | FIXED => panic!("cluster {cluster:#x} cannot hold data"),
            TAKEN => self.set_count(cluster, 1),
            0 => {
                self.unfree(cluster);
                self.set_count(cluster, 1);
            }
            count => self.set_count(cluster, count + 1),
        }
    }

    /// One holds it no longer; free when it was the last.
    #[inline]
    pub fn release(&mut self, cluster: u32) {
        match self.count(cluster) {
            0 | TAKEN | METADATA | FIXED => panic!("cluster {cluster:#x} has no holder"),
            1 => self.free_cluster(cluster),
            count => self.set_count(cluster, count - 1),
        }
    }

    /// Clusters that somebody holds, in order.
    pub fn held(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.devices.iter().enumerate().flat_map(|(device, state)| {
            state.counts.not_free().into_iter().map(move |place| cluster_at(device, place))
        });
        all.filter(|cluster| self.holders(*cluster) > 0)
    }

    /// Nobody holds anything: to be counted anew. Pages and what is fixed stay.
    pub fn forget_holders(&mut self) {
        for device in 0..self.devices.len() {
            for place in self.devices[device].counts.not_free() {
                let cluster = cluster_at(device, place);
                if !matches!(self.count(cluster), METADATA | FIXED) {
                    self.free_cluster(cluster);
                }
            }
        }
    }

    /// The cluster is never given to anybody. False when there is none or it is in use.
    pub fn mark_fixed(&mut self, cluster: u32) -> bool {
        let there = self.devices[device_of(cluster)].clusters > place_of(cluster);
        match there.then(|| self.count(cluster)) {
            Some(FIXED) => true,
            Some(0) => {
                self.unfree(cluster);
                self.set_count(cluster, FIXED);
                self.devices[device_of(cluster)].fixed_count += 1;
                true
            }
            _ => false,
        }
    }

    /// Takes clusters side by side on a device that are never given to anybody; the first of them.
    pub fn take_fixed(&mut self, device: usize, clusters: u32) -> Option<u32> {
        for number in 0..self.windows.len() {
            self.empty_window(number);
        }
        let first = cluster_at(device, self.devices[device].free_run(clusters)?);
        (first..first + clusters).for_each(|cluster| _ = self.mark_fixed(cluster));
        Some(first)
    }

    /// Gives back what was fixed.
    pub fn free_fixed(&mut self, first: u32, clusters: u32) {
        for cluster in first..first + clusters {
            assert!(self.count(cluster) == FIXED, "cluster {cluster:#x} is not fixed");
            self.devices[device_of(cluster)].fixed_count -= 1;
            self.free_cluster(cluster);
        }
    }

    /// Whether nothing is taken where this cluster is.
    #[inline]
    pub fn is_readonly(&self, cluster: u32) -> bool {
        self.devices[device_of(cluster)].readonly
    }

    /// The run ends; what is free in its window is free for everybody.
    pub fn close_run(&mut self, run: &mut Run) {
        let number = std::mem::take(&mut run.window);
        if number != 0 {
            self.empty_window(number as usize - 1);
            self.windows[number as usize - 1].open = false;
            self.free_windows.push(number);
        }
    }

    #[inline]
    fn count(&self, cluster: u32) -> u32 {
        self.devices[device_of(cluster)].counts.get(place_of(cluster))
    }

    #[inline]
    fn set_count(&mut self, cluster: u32, count: u32) {
        self.devices[device_of(cluster)].counts.set(place_of(cluster), count);
    }

    /// The next free cluster of a run, which is no longer free.
    #[inline]
    fn claim(&mut self, run: &mut Run) -> Option<u32> {
        if run.window == 0 || self.windows[run.window as usize - 1].free == 0 {
            self.open_window(run);
        }
        let own = &mut self.windows[run.window as usize - 1];
        let cluster = if own.free != 0 {
            let cluster = own.first + own.free.trailing_zeros();
            own.free &= own.free - 1;
            cluster
        } else {
            if self.windows_kept {
                return None;
            }
            // The last of somebody's, who will miss it last.
            let other = self.windows.iter_mut().find(|window| window.free != 0)?;
            let last = other.free.ilog2();
            other.free &= !(1 << last);
            other.first + last
        };
        self.count_free(device_of(cluster), -1);
        Some(cluster)
    }

    /// Plants a bug: see [`crate::Planted::WindowsKept`].
    pub(crate) fn keep_windows(&mut self) {
        self.windows_kept = true;
    }

    /// Looks for a new window for a run: a whole one if there is, one device after the other.
    #[cold]
    fn open_window(&mut self, run: &mut Run) {
        if run.window == 0 {
            run.window = self.free_windows.pop().unwrap_or_else(|| {
                self.windows.push(Window::default());
                self.windows.len() as u32
            });
            self.windows[run.window as usize - 1].open = true;
        }
        let Some((device, index)) = self.find_window() else { return };
        let state = &mut self.devices[device];
        let free = state.free.word(index);
        state.free.clear_in(index, free);
        state.whole.clear(index);
        state.cursor = index + 1;
        self.next_device = (device + 1) % MAX_DEVICES;
        let first = cluster_at(device, index as u32 * WINDOW_CLUSTERS);
        self.windows[run.window as usize - 1] = Window { first, free, open: true };
    }

    fn find_window(&self) -> Option<(usize, usize)> {
        let devices = || {
            let all = (0..MAX_DEVICES).map(|turn| (self.next_device + turn) % MAX_DEVICES);
            all.filter(|device| {
                let state = &self.devices[*device];
                state.clusters > 0 && !state.readonly
            })
        };
        let whole = devices().find_map(|device| {
            let state = &self.devices[device];
            Some((device, state.whole.next_around(state.cursor)?))
        });
        whole.or_else(|| {
            devices().find_map(|device| {
                let state = &self.devices[device];
                let from = state.cursor * WINDOW_CLUSTERS as usize;
                Some((device, state.free.next_around(from)? / WINDOW_CLUSTERS as usize))
            })
        })
    }

    /// What is free in a window goes back to its device.
    fn empty_window(&mut self, number: usize) {
        let window = &mut self.windows[number];
        let free = std::mem::take(&mut window.free);
        if free == 0 {
            return;
        }
        let (device, place) = (device_of(window.first), place_of(window.first));
        self.give_word(device, (place / WINDOW_CLUSTERS) as usize, free);
    }

    fn give_word(&mut self, device: usize, index: usize, free: u64) {
        let state = &mut self.devices[device];
        state.free.set_in(index, free);
        if state.free.word(index) == u64::MAX {
            state.whole.set(index);
        }
    }

    /// The cluster has nobody any more.
    fn free_cluster(&mut self, cluster: u32) {
        self.set_count(cluster, 0);
        self.give_back(cluster);
    }

    fn give_back(&mut self, cluster: u32) {
        let place = place_of(cluster);
        let bit = 1 << (place % WINDOW_CLUSTERS);
        self.give_word(device_of(cluster), (place / WINDOW_CLUSTERS) as usize, bit);
        self.count_free(device_of(cluster), 1);
    }

    /// A free cluster is so no longer, though no run took it.
    fn unfree(&mut self, cluster: u32) {
        let place = place_of(cluster);
        let index = (place / WINDOW_CLUSTERS) as usize;
        let bit = 1 << (place % WINDOW_CLUSTERS);
        let first = cluster - place % WINDOW_CLUSTERS;
        let state = &mut self.devices[device_of(cluster)];
        if state.free.contains(place as usize) {
            state.free.clear_in(index, bit);
            state.whole.clear(index);
        } else {
            let mut windows = self.windows.iter_mut();
            let window = windows.find(|window| window.first == first && window.free & bit != 0);
            window.expect("what is free is on its device or in a window").free &= !bit;
        }
        self.count_free(device_of(cluster), -1);
    }

    fn count_free(&mut self, device: usize, change: i64) {
        let state = &mut self.devices[device];
        state.free_count = state.free_count.wrapping_add_signed(change);
        if !state.readonly {
            self.free = self.free.wrapping_add_signed(change);
        }
    }
}
