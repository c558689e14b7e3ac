//! A life of a pool: from when it is opened until everything ends. Cores are interleaved by
//! chance; I/Os and calls come by chance; the model is told of each, and the images that the world
//! takes meanwhile are compared with it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::attack;
use crate::calls::{Asked, Plan};
use crate::config::Config;
use crate::failure::Failure;
use crate::members::Changing;
use crate::model::Model;
use crate::pool::{Pool, SLOTS};
use crate::random::Random;
use crate::spread::Spread;
use crate::traffic::Flight;
use crate::world::End;

/// See the module.
pub(crate) struct Life {
    pub pool: Pool,
    pub model: Model,
    pub random: Random,
    pub config: Arc<Config>,
    /// Lives before this one in this pool.
    pub generation: u64,
    pub flights: Vec<Option<Flight>>,
    /// The call that has not been answered, and what is to follow it.
    pub asked: Option<Asked>,
    pub script: VecDeque<Plan>,
    /// A checkpoint that was asked for beside all that.
    pub checkpoint: Option<u64>,
    /// The pool takes no writes any more: a device has failed.
    pub is_broken: bool,
    /// Devices that come and go.
    pub changing: Changing,
    /// Names are never given twice.
    pub next_name: u64,
    pub statistics: Statistics,
    /// Writes that the pool refused in this life; `statistics` has those of lives after its end,
    /// too.
    pub full: u64,
}

/// What happened, so that a run can show that it did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// I/Os that ended.
    pub ios: u64,
    /// Those that were refused for want of space.
    pub full: u64,
    /// Calls that did what they should.
    pub calls: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// I/Os that failed with a device, and pools that took no writes any more after that.
    pub failed: u64,
    /// See [`Statistics::failed`].
    pub broken: u64,
    /// Devices that were removed.
    pub removals: u64,
    /// Ends after which the pool was opened and compared with the model.
    pub points: u64,
    /// Lives that went on after an end.
    pub lives: u64,
}

impl Statistics {
    /// Adds those of another life.
    pub fn add(&mut self, other: &Statistics) {
        self.ios += other.ios;
        self.full += other.full;
        self.calls += other.calls;
        self.refused += other.refused;
        self.failed += other.failed;
        self.broken += other.broken;
        self.removals += other.removals;
        self.points += other.points;
        self.lives += other.lives;
    }
}

impl Life {
    /// What follows when a pool has been opened and is as the model says.
    pub(crate) fn new(pool: Pool, model: Model, random: Random, config: &Arc<Config>) -> Self {
        Self {
            pool,
            model,
            random,
            config: Arc::clone(config),
            generation: 0,
            flights: (0..SLOTS).map(|_| None).collect(),
            asked: None,
            script: VecDeque::new(),
            checkpoint: None,
            is_broken: false,
            changing: Changing::default(),
            next_name: 0,
            statistics: Statistics::default(),
            full: 0,
        }
    }

    /// Does so many things, sees them end, and is attacked meanwhile and then.
    pub(crate) fn run(&mut self, operations: u64) -> Result<(), Failure> {
        let mut begun = 0;
        while begun < operations || self.is_waiting() {
            if begun < operations {
                self.ask_checkpoint();
            }
            match self.random.below(16) {
                0..=8 => {
                    let lane = self.random.below(self.pool.lanes() as u64) as usize;
                    self.turn(lane)?;
                }
                9..=14 if begun < operations => {
                    // What was to be closed or opened for that may never be.
                    begun += u64::from(self.submit_any() || self.is_broken);
                    self.attack()?;
                }
                15 if begun < operations && !self.is_broken => self.plan_any(),
                _ => {}
            }
        }
        // A volume of terabytes cannot be filled, and on a device that fails anything may be
        // refused.
        let is_plain = self.config.faults.is_empty() && self.config.spread == Spread::default();
        if is_plain && self.random.one_in(2) {
            self.fill_up()?;
        }
        match self.pool.check() {
            // A checkpoint was cut short.
            Err(Failure::Refused { .. }) if !self.config.faults.is_empty() => self.is_broken = true,
            checked => checked?,
        }
        self.statistics.broken += u64::from(self.is_broken);
        for end in End::ALL {
            let image = self.pool.world.image(end);
            self.attack_image(image)?;
        }
        Ok(())
    }

    /// Whether something has not ended yet.
    fn is_waiting(&self) -> bool {
        self.is_busy()
            || self.is_calling()
            || self.changing.removal.is_some()
            || self.checkpoint.is_some()
    }

    pub(crate) fn turn(&mut self, lane: usize) -> Result<(), Failure> {
        let goes_on = self.pool.turn(lane);
        self.attack()?;
        self.take_ends()?;
        self.poll_calls()?;
        if goes_on {
            return Ok(());
        }
        let flights = self.flights.iter().flatten().map(|flight| format!("{flight:?}"));
        let asked = self.asked.iter().map(|asked| format!("{asked:?}"));
        let asked = asked.chain([format!("{:?}", self.changing)]);
        Err(Failure::Stuck { waiting: flights.chain(asked).collect::<Vec<_>>().join(", ") })
    }

    /// A step at which the model has changed. Images are compared before it changes again: a later
    /// model would expect more than an earlier image can hold.
    pub(crate) fn step_on(&mut self) -> Result<(), Failure> {
        self.pool.world.step_on();
        self.attack()
    }

    /// Compares the images taken since the last time with the model.
    fn attack(&mut self) -> Result<(), Failure> {
        for image in self.pool.world.take_images() {
            self.attack_image(image)?;
        }
        Ok(())
    }

    fn attack_image(&mut self, image: crate::world::Image) -> Result<(), Failure> {
        let found = attack::survive(image, self)?;
        self.statistics.add(&found);
        Ok(())
    }
}
